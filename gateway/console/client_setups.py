"""What to enter in each client to reach one server: a command, a file, a URL, or a link to open.

The forms are those of the clients' own documents, of 2026-11. They are in docs/connecting-clients.md too.
"""

import json
import shlex
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

KEY_PLACEHOLDER: Final = "YOUR_KEY"
"""What stands for a key that is not known: it is shown only when it is issued."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What one client takes."""

    client: str
    where: str
    """Where the text goes."""
    text: str = field(repr=False)
    link: str | None = field(default=None, repr=False)
    """A link that the client opens, and that does the same."""


@dataclass(frozen=True, slots=True)
class Address:
    """How one user reaches one server."""

    base_url: str
    """The host's public address, without a slash at its end."""
    server: str
    user_id: str
    needs_key: bool
    key: str | None = field(default=None, repr=False)
    """None if it is not known."""

    @property
    def server_url(self) -> str:
        """For clients that send the key in a header, and for those of a host without keys."""
        url = f"{self.base_url}/{quote(self.server, safe='')}"
        return url if self.needs_key else f"{url}/{quote(self.user_id, safe='')}"

    @property
    def whole_url(self) -> str:
        """For clients that take a URL only: with the key in it."""
        if not self.needs_key:
            return self.server_url
        return f"{self.server_url}/{quote(self.user_id, safe='')}:{self.key or KEY_PLACEHOLDER}"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that a client has to be told to send."""
        return {"Authorization": f"Bearer {self.key or KEY_PLACEHOLDER}"} if self.needs_key else {}


def setups(address: Address) -> list[Setup]:
    """What each client takes."""
    name, url, headers = address.server, address.server_url, address.headers
    with_headers: dict[str, Any] = {"headers": headers} if headers else {}
    # A link with a placeholder in it would set up a client that cannot connect.
    has_links = address.key is not None or not address.needs_key
    vscode = {"type": "http", "url": url, **with_headers}
    cursor = {"url": url, **with_headers}
    remote = [
        "-y",
        "mcp-remote",
        url,
        *(part for header in headers.items() for part in ("--header", ": ".join(header))),
    ]
    return [
        Setup("Claude Code", "Run in a terminal", _claude_code(name, url, headers)),
        Setup("claude.ai", "Settings, Connectors, Add custom connector: its URL", address.whole_url),
        Setup("ChatGPT", "Settings, Connectors, Create: its URL, without authentication", address.whole_url),
        Setup(
            "VS Code",
            ".vscode/mcp.json",
            _json({"servers": {name: vscode}}),
            f"vscode:mcp/install?{quote(json.dumps({'name': name, **vscode}), safe='')}" if has_links else None,
        ),
        Setup(
            "Cursor",
            "~/.cursor/mcp.json",
            _json({"mcpServers": {name: cursor}}),
            _cursor_link(name, cursor) if has_links else None,
        ),
        Setup(
            "Claude Desktop",
            "claude_desktop_config.json",
            _json({"mcpServers": {name: {"command": "npx", "args": remote}}}),
        ),
        Setup("Zed, Open WebUI and other clients of commands", "As a command", shlex.join(["npx", *remote])),
        Setup("Gemini CLI", "~/.gemini/settings.json", _json({"mcpServers": {name: {"httpUrl": url, **with_headers}}})),
        Setup("Windsurf", "mcp_config.json", _json({"mcpServers": {name: {"serverUrl": url, **with_headers}}})),
        Setup("Codex", "~/.codex/config.toml", _codex(name, url, headers)),
        Setup("LibreChat", "librechat.yaml", _librechat(name, url, headers)),
    ]


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _claude_code(name: str, url: str, headers: Mapping[str, str]) -> str:
    command = ["claude", "mcp", "add", "--transport", "http", name, url]
    for header in headers.items():
        command += ["--header", ": ".join(header)]
    return " ".join(word if word.isidentifier() else _quoted(word) for word in command)


def _quoted(word: str) -> str:
    # Double quotes work in Windows' shells too.
    return f'"{word}"' if " " in word and not set(word) & set('"$`\\!%') else shlex.quote(word)


def _cursor_link(name: str, config: Mapping[str, Any]) -> str:
    encoded = quote(b64encode(json.dumps(config).encode()).decode("ascii"), safe="")
    return f"cursor://anysphere.cursor-deeplink/mcp/install?name={quote(name, safe='')}&config={encoded}"


def _codex(name: str, url: str, headers: Mapping[str, str]) -> str:
    # A JSON string is a TOML string.
    lines = [f"[mcp_servers.{json.dumps(name)}]", f"url = {json.dumps(url)}"]
    if headers:
        pairs = ", ".join(f"{json.dumps(header)} = {json.dumps(value)}" for header, value in headers.items())
        lines.append(f"http_headers = {{ {pairs} }}")
    return "\n".join(lines)


def _librechat(name: str, url: str, headers: Mapping[str, str]) -> str:
    # A JSON string is a YAML string.
    lines = ["mcpServers:", f"  {json.dumps(name)}:", "    type: streamable-http", f"    url: {json.dumps(url)}"]
    if headers:
        lines.append("    headers:")
        lines += [f"      {header}: {json.dumps(value)}" for header, value in headers.items()]
    return "\n".join(lines)
