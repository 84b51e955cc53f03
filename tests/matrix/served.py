"""Serve servers that are not Python folders of this project, and print what clients of every protocol can do with them.

    python tests/matrix/served.py

Exit code 0: each of them was listed and called, and reported progress, failed and asked its client as far as it can.
They are the npm package `@modelcontextprotocol/server-everything`, `mcp-server-time` from PyPI, a server of protocol
2024-11-05, and a folder whose `requirements.txt` pins mcp 1.28. All are installed on the first run, as `run.py` does.

Run it with the host's own Python.
"""

import asyncio
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

import mcp_types as types  # noqa: E402
from mcp.client import Client  # noqa: E402
from mcp.client.sse import sse_client  # noqa: E402

from tests.conformance.run import RunnerError, served  # noqa: E402 - found by the line above
from tests.matrix.run import node, python_with  # noqa: E402
from tests.support.processes import (  # noqa: E402
    HOST_COMMANDS,
    ProcessFailed,
    environment,
    free_port,
    manage,
    migrate,
    running,
)

CLIENT_SECONDS: Final = 60.0
"""Everything that one client does with one server, its start included."""

CHECKS: Final = ("lists", "calls", "progress", "error", "sampling", "elicitation", "roots")

PROTOCOLS: Final = ("HTTP+SSE", "2025-11-25", "2026-07-28")

Call = tuple[str, dict[str, Any], str]
"""A tool, its arguments, and a pattern that the text of its result must match."""


@dataclass(frozen=True)
class Served:
    """One server: its manifest, and the tools that show what it can do."""

    name: str
    title: str
    manifest: Mapping[str, Any] | None
    """None for a folder beside this file."""
    calls: Mapping[str, Call] = field(default_factory=dict)


def all_servers() -> list[Served]:
    """The servers, having installed what they need."""
    node()
    everything = str(HERE / "node_modules" / ".bin" / "mcp-server-everything")
    time = str(Path(python_with(("mcp-server-time==2026.10.19",))).with_name("mcp-server-time"))
    oldest = str(HERE.parent / "support" / "talking_child.py")
    asked = {"sampling": "four", "elicitation": "Ada", "roots": "file:///work"}
    return [
        Served(
            "everything",
            "npm server-everything",
            {"command": everything},
            {
                "calls": ("echo", {"message": "hello"}, "hello"),
                "progress": ("trigger-long-running-operation", {"duration": 0.3, "steps": 3}, "completed"),
                "error": ("get-sum", {"a": "not a number", "b": 1}, ""),
                "sampling": ("trigger-sampling-request", {"prompt": "?"}, asked["sampling"]),
                "elicitation": ("trigger-elicitation-request", {}, asked["elicitation"]),
                "roots": ("get-roots-list", {}, asked["roots"]),
            },
        ),
        Served(
            "time",
            "PyPI mcp-server-time",
            {"command": time, "args": ["--local-timezone", "Europe/Oslo"]},
            {
                "calls": ("get_current_time", {"timezone": "Asia/Tokyo"}, "Asia/Tokyo"),
                "error": ("get_current_time", {"timezone": "Nowhere/Atall"}, "timezone"),
            },
        ),
        Served(
            "oldest",
            "protocol 2024-11-05",
            {"command": sys.executable, "args": ["-S", oldest]},
            {
                "calls": ("echo", {"text": "hello"}, "hello"),
                "progress": ("progress", {}, "done"),
                "error": ("fail", {}, "it failed"),
                "sampling": ("sample", {}, asked["sampling"]),
                "elicitation": ("elicit", {}, asked["elicitation"]),
                "roots": ("roots", {}, asked["roots"]),
            },
        ),
        Served(
            "pinned",
            "folder on mcp 1.28",
            None,
            {
                "calls": ("sdk_version", {}, r"1\.28\.1"),
                "progress": ("progress", {}, "done"),
                "error": ("fail", {}, "it failed"),
                "sampling": ("sample", {}, asked["sampling"]),
                "elicitation": ("elicit", {}, asked["elicitation"]),
                "roots": ("roots", {}, asked["roots"]),
            },
        ),
    ]


async def _sample(*_: Any) -> types.CreateMessageResult:
    return types.CreateMessageResult(role="assistant", content=types.TextContent(text="four"), model="m")


async def _elicit(*_: Any) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "Ada"})


async def _roots(*_: Any) -> types.ListRootsResult:
    return types.ListRootsResult(roots=[types.Root(uri="file:///work")])


async def try_out(server: Served, protocol: str, base_url: str) -> dict[str, str]:
    """What one client can do with one server: check -> `yes`, or what went wrong."""
    url = f"{base_url}/{server.name}/ada-{protocol}:key"
    target: Any = sse_client(url) if protocol == "HTTP+SSE" else url
    seen: dict[str, str] = {}
    try:
        async with (
            asyncio.timeout(CLIENT_SECONDS),
            Client(
                target,
                mode="auto" if protocol == "2026-07-28" else "legacy",
                cache=None,
                sampling_callback=_sample,
                elicitation_callback=_elicit,
                list_roots_callback=_roots,
            ) as client,
        ):
            if protocol != "HTTP+SSE" and client.protocol_version != protocol:
                raise RunnerError(f"protocol {client.protocol_version} was agreed on")
            tools = {tool.name for tool in (await client.list_tools()).tools}
            missing = {tool for tool, _, _ in server.calls.values()} - tools
            seen["lists"] = f"not listed: {missing}" if missing else "yes"
            for check, (tool, arguments, pattern) in server.calls.items():
                seen[check] = await _checked(client, check, tool, arguments, pattern)
    except Exception as error:
        seen["lists"] = f"{seen.get('lists', '')} {error!r}"
    return seen


async def _checked(client: Client, check: str, tool: str, arguments: dict[str, Any], pattern: str) -> str:
    told: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    try:
        result = await client.call_tool(tool, arguments, progress_callback=on_progress)
    except Exception as error:
        return repr(error)
    text = " ".join(content.text for content in result.content if isinstance(content, types.TextContent))
    if bool(result.is_error) != (check == "error") or not re.search(pattern, text):
        return f"{'error' if result.is_error else 'result'}: {text[:200]}"
    # The client drops a notification that it reads together with the result.
    if check == "progress" and not (told and told == sorted(told) and set(told) <= {1, 2, 3}):
        return f"progress {told}"
    return "yes"


async def try_all(servers: list[Served], base_url: str) -> dict[tuple[str, str], dict[str, str]]:
    """Let a client of every protocol try every server, all at once."""
    pairs = [(server, protocol) for server in servers for protocol in PROTOCOLS]
    outcomes = await asyncio.gather(*(try_out(server, protocol, base_url) for server, protocol in pairs))
    return {(server.name, protocol): seen for (server, protocol), seen in zip(pairs, outcomes, strict=True)}


def main() -> int:
    try:
        servers = all_servers()
        with tempfile.TemporaryDirectory(prefix="gumcp-matrix-", ignore_cleanup_errors=True) as scratch:
            data_dir, server_dir = Path(scratch) / "data", Path(scratch) / "servers"
            data_dir.mkdir()
            for server in servers:
                folder = server_dir / server.name
                if server.manifest is None:
                    shutil.copytree(HERE / "servers" / server.name, folder)
                else:
                    folder.mkdir(parents=True)
                    (folder / "server.json").write_text(json.dumps(server.manifest))
            outcomes = served_and_tried(servers, data_dir, server_dir)
    except (RunnerError, ProcessFailed) as error:
        print(error, file=sys.stderr)
        return 2
    titles = {server.name: server.title for server in servers}
    print(f"| Server | Client | {' | '.join(CHECKS)} |\n|{'---|' * (2 + len(CHECKS))}")
    wrong: list[str] = []
    for (name, protocol), seen in outcomes.items():
        marks = ["yes" if seen.get(check) == "yes" else "NO" if check in seen else "-" for check in CHECKS]
        print(f"| {titles[name]} | {protocol} | {' | '.join(marks)} |")
        wrong += [f"{name}, {protocol}, {check}: {text}" for check, text in seen.items() if text != "yes"]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def served_and_tried(servers: list[Served], data_dir: Path, server_dir: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Prepare the environments, start a host, and try everything."""
    settings = {"GUMCP_SERVER_DIRS": str(server_dir)}
    prepared = manage("prepare_servers", data_dir=data_dir, **settings)
    if prepared.returncode != 0:
        raise RunnerError(f"manage.py prepare_servers failed:\n{prepared.stderr}")
    migrate(data_dir)
    port = free_port()
    command = [
        sys.executable,
        *(word.format(port=port, application="gumcp_site.asgi:application") for word in HOST_COMMANDS["daphne"]),
    ]
    log = data_dir / "host.log"
    with running(
        command,
        env=environment(data_dir, **settings),
        log=log,
        is_ready=lambda: len(served(f"http://127.0.0.1:{port}/health_check")) == len(servers),
    ):
        outcomes = asyncio.run(try_all(servers, f"http://127.0.0.1:{port}"))
    if any(text != "yes" for seen in outcomes.values() for text in seen.values()):
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
