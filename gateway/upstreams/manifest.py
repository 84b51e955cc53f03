"""Manifests: `server.json` in a server folder, and the entries of an `mcpServers` file.

Their form is the one that MCP clients use (`command`, `args`, `env`, `cwd`, or `url`, `headers`, `type`). What is this
host's own stands under one key, `gumcp`. Everything is checked here, when the manifest is loaded; a bad entry is a load
failure with its reason, like a bad folder.
"""

import difflib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.http.addresses import refused_address
from gateway.upstreams.placeholders import PlaceholderError, Text, parse_text
from gateway.upstreams.secrecy import hide_secrets

MANIFEST_NAME: Final = "server.json"
"""The manifest's file name in a server folder."""

MAX_MANIFEST_BYTES: Final = 1024 * 1024

Per = Literal["identity", "session", "shared"]
"""Who shares a child process or remote connection: one caller's sessions, nobody, or everybody."""

_CLIENTS_OWN: Final = frozenset(
    {"disabled", "autoApprove", "alwaysAllow", "description", "name", "icon", "tags", "timeout", "initTimeout", "tools"}
)
"""Keys that clients put into their entries for themselves. Only `disabled` means something here."""

_TYPES: Final = {
    "http": "http",
    "streamable-http": "http",
    "streamableHttp": "http",
    "streamable_http": "http",
    "sse": "sse",
    "stdio": "stdio",
}

_Seconds = Annotated[float, Field(gt=0, le=86_400 * 7)]
_Limit = Annotated[float, Field(ge=0, le=86_400 * 7)]
_Count = Annotated[int, Field(gt=0, le=1_000_000)]

_INTERPRETER: Final = re.compile(
    r"(?:ba|da|z|k|fi|a)?sh|busybox|python[\d.]*|node|deno|bun|perl|ruby|php|lua|awk|pwsh|powershell|cmd(?:\.exe)?"
)
"""Names of programs that execute an argument as code."""

_CODE_FOLLOWS: Final = re.compile(r"-\w*[cCeEpr]|--(?:eval|command|print)|/[cC]|eval")
"""Arguments that are followed by code."""


class ManifestError(ValueError):
    """A manifest cannot be used. The message is a sentence for the operator."""


class _Options(BaseModel):
    """What stands under `gumcp`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    per: Per = "identity"
    isolation: Literal["none", "process"] | None = None
    environment: Literal["own", "host"] = "own"
    memory_mib: _Count | None = Field(None, alias="memoryMiB")
    cpu_seconds: _Count | None = Field(None, alias="cpuSeconds")
    open_files: _Count | None = Field(None, alias="openFiles")
    processes: _Count | None = None
    idle_seconds: _Seconds | None = Field(None, alias="idleSeconds")
    start_timeout_seconds: _Seconds | None = Field(None, alias="startTimeoutSeconds")
    call_timeout_seconds: _Limit | None = Field(None, alias="callTimeoutSeconds")
    user: str | None = None
    allow_private_addresses: bool = Field(True, alias="allowPrivateAddresses")


class _Entry(BaseModel):
    """One entry as it is written."""

    model_config = ConfigDict(extra="forbid", strict=True)

    command: str | None = None
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    type: str | None = None
    transport: str | None = None
    gumcp: _Options = Field(default_factory=lambda: _Options.model_validate({}))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process tree may use; None for no limit of its own."""

    memory_bytes: int | None = None
    """Of all processes of the tree together."""
    cpu_seconds: int | None = None
    open_files: int | None = None
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class CommandSource:
    """A command that speaks MCP on its standard input and output."""

    command: str
    args: tuple[Text, ...]
    env: Mapping[str, Text] = field(repr=False)
    cwd: Text | None
    limits: Limits
    user: str | None = None
    """The system user that it runs as; None for the host's."""
    is_folder: bool = False
    """Whether it is a Python folder in a process of its own, which learns on descriptor 3 who calls."""

    @property
    def kind(self) -> str:
        """What operators are told it is."""
        return "process" if self.is_folder else "command"

    @property
    def summary(self) -> str:
        """The command line with placeholders in place of values, and without what looks like a secret."""
        return " ".join([self.command, *hide_secrets([argument.source for argument in self.args])])

    @property
    def values(self) -> Mapping[str, Text]:
        """What is given to it by name, other than on its command line."""
        return self.env

    def why_not_found(self) -> str:
        """Why the command cannot be executed, as a part of a sentence; empty if it can, as far as files show."""
        if "/" in self.command:
            if not os.path.isfile(self.command):
                return f"its command {self.command} does not exist"
            return "" if os.access(self.command, os.X_OK) else f"its command {self.command} is not executable"
        own = self.env.get("PATH")
        if own is not None and own.depends_on_caller:
            return ""
        path = os.environ.get("PATH", os.defpath) if own is None else own.parts[0]
        if shutil.which(self.command, path=path) is not None:
            return ""
        # The value of a manifest's own PATH is not repeated: values of its env are not shown anywhere.
        return f"its command {self.command} was not found in PATH ({path if own is None else 'that of its env'})"


@dataclass(frozen=True, slots=True)
class RemoteSource:
    """An MCP server at a URL."""

    url: Text
    headers: Mapping[str, Text] = field(repr=False)
    type: Literal["http", "sse"]
    allows_private_addresses: bool
    """Whether addresses of private networks and of this machine may be connected to."""

    @property
    def kind(self) -> str:
        """What operators are told it is."""
        return "remote"

    @property
    def summary(self) -> str:
        """The URL with placeholders in place of values, without its query and without what looks like a secret."""
        return hide_secrets([self.url.source.partition("?")[0]])[0]

    @property
    def values(self) -> Mapping[str, Text]:
        """What is given to it by name, other than in its URL."""
        return self.headers


@dataclass(frozen=True, slots=True)
class Manifest:
    """One checked entry."""

    source: CommandSource | RemoteSource
    per: Per = "identity"
    idle_seconds: float | None = None
    """How long an unused child is kept; None for as long as its instance."""
    start_timeout_seconds: float | None = None
    """How long the other side may take to answer `initialize`; None for the host's setting."""
    call_timeout_seconds: float | None = None
    """How long a call may take without progress, 0 for no limit; None for the host's setting."""


def read_json(path: Path) -> Any:
    """The JSON of a manifest file.

    Raises:
        ManifestError: it cannot be read or is not JSON. The message does not name the file.
    """
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ManifestError(f"The file is larger than {MAX_MANIFEST_BYTES} bytes.")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ManifestError(f"The file cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ManifestError("The file is not UTF-8.") from None
    except (json.JSONDecodeError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ManifestError(f"The file is not JSON{where}.") from None


def read_servers_file(path: Path) -> dict[str, Any]:
    """The entries of an `mcpServers` file by name, not checked yet. Entries that say `disabled` are left out.

    Raises:
        ManifestError: the file cannot be read or has no object `mcpServers`.
    """
    content = read_json(path)
    # VS Code calls the same object `servers`.
    entries = content.get("mcpServers", content.get("servers")) if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise ManifestError("The file has no object mcpServers.")
    return {name: entry for name, entry in entries.items() if not (isinstance(entry, dict) and entry.get("disabled"))}


def parse_manifest(entry: Any, folder: Path, environment: Mapping[str, str] | None = None) -> Manifest:
    """Check one entry. Relative folders and commands with a slash start at `folder`.

    Raises:
        ManifestError: it cannot be used.
    """
    environment = os.environ if environment is None else environment
    written = _validate(entry)
    options = written.gumcp
    if options.isolation is not None:
        raise ManifestError("gumcp.isolation is for a folder with a main.py; a command is a process of its own anyway.")
    if (written.command is None) == (written.url is None):
        raise ManifestError("An entry needs either command or url.")
    kind = _type_of(written)
    try:
        source = _command(written, folder, environment) if kind == "stdio" else _remote(written, kind, environment)
    except PlaceholderError as error:
        raise ManifestError(str(error)) from None
    return Manifest(
        source, options.per, options.idle_seconds, options.start_timeout_seconds, options.call_timeout_seconds
    )


@dataclass(frozen=True, slots=True)
class FolderOptions:
    """What a manifest beside a `main.py` says of how the folder is run."""

    isolates: bool | None
    """Whether it runs in a process of its own; None for the host's setting."""
    uses_own_environment: bool
    """Whether the packages of its `requirements.txt` are installed for it alone."""
    env: Mapping[str, Text] = field(repr=False)
    """Variables of its process."""
    per: Per
    limits: Limits
    idle_seconds: float | None
    start_timeout_seconds: float | None
    call_timeout_seconds: float | None


def parse_folder_options(entry: Any, environment: Mapping[str, str] | None = None) -> FolderOptions:
    """Check a manifest beside a `main.py`.

    Raises:
        ManifestError: it cannot be used.
    """
    written = _validate(entry)
    if written.command is not None or written.url is not None:
        raise ManifestError("A folder with a main.py cannot have a command or url too. Remove one of the two.")
    options = written.gumcp
    return FolderOptions(
        None if options.isolation is None else options.isolation == "process",
        options.environment == "own",
        _variables(written, os.environ if environment is None else environment),
        options.per,
        _limits(options),
        options.idle_seconds,
        options.start_timeout_seconds,
        options.call_timeout_seconds,
    )


def _validate(entry: Any) -> _Entry:
    if not isinstance(entry, dict):
        raise ManifestError("An entry must be a JSON object.")
    own = {key: value for key, value in entry.items() if key not in _CLIENTS_OWN}
    # Clients that have two fields for a URL.
    for alias in ("serverUrl", "httpUrl"):
        if alias in own and "url" not in own:
            own["url"] = own.pop(alias)
    try:
        return _Entry.model_validate(own)
    except ValidationError as error:
        raise ManifestError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    """The first fault of an entry, without the values that stand in it."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden" and first["loc"] == ("mcpServers",):
        return "This is a whole mcpServers object. Put only the entry here, or name the file in GUMCP_SERVERS_FILE."
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = _Options if first["loc"][0] == "gumcp" and len(first["loc"]) > 1 else _Entry
        known = [found.alias or name for name, found in model.model_fields.items()]
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        return f"{where} is not a known key." + (f" Did you mean {near[0]}?" if near else "")
    return f"{where}: {first['msg']}."


def _type_of(written: _Entry) -> Literal["stdio", "http", "sse"]:
    named = written.type or written.transport
    if named is None:
        if written.command is not None:
            return "stdio"
        path = urlsplit(written.url or "").path
        return "sse" if path.rstrip("/").endswith("/sse") else "http"
    kind = _TYPES.get(named)
    if kind is None:
        raise ManifestError(f"type {named!r} is not known. Use stdio, http or sse.")
    if (kind == "stdio") != (written.command is not None):
        raise ManifestError(f"type {named} does not go with {'command' if written.command is not None else 'url'}.")
    return cast('Literal["stdio", "http", "sse"]', kind)


def _limits(options: _Options) -> Limits:
    memory = None if options.memory_mib is None else options.memory_mib * 1024 * 1024
    return Limits(memory, options.cpu_seconds, options.open_files, options.processes)


def _variables(written: _Entry, environment: Mapping[str, str]) -> dict[str, Text]:
    for name in written.env:
        if not name or "=" in name or "\0" in name:
            raise ManifestError(f"env has a name that no variable can have: {name!r}.")
    try:
        return {name: parse_text(value, environment) for name, value in written.env.items()}
    except PlaceholderError as error:
        raise ManifestError(str(error)) from None


def _command(written: _Entry, folder: Path, environment: Mapping[str, str]) -> CommandSource:
    command = written.command or ""
    if not command.strip() or "\0" in command:
        raise ManifestError("command is empty.")
    if "${" in command:
        raise ManifestError("command cannot have placeholders; args, env and cwd can.")
    if written.headers:
        raise ManifestError("headers go with url, not with command.")
    if "/" in command:
        command = str((folder / command).absolute())
    arguments = tuple(parse_text(argument, environment) for argument in written.args)
    _require_no_caller_in_code(command, arguments)
    return CommandSource(
        command,
        arguments,
        _variables(written, environment),
        parse_text(str(folder / written.cwd) if written.cwd else str(folder), environment),
        _limits(written.gumcp),
        written.gumcp.user,
    )


def _require_no_caller_in_code(command: str, arguments: Sequence[Text]) -> None:
    """Refuse `sh -c "… ${user_id}"` and the like, where what a caller is named would be executed."""
    is_interpreter = _INTERPRETER.fullmatch(Path(command).name) is not None
    takes_code = False
    for argument in arguments:
        if takes_code and argument.depends_on_caller:
            raise ManifestError(
                "args has a placeholder in code that an interpreter executes. "
                "Pass it as an argument of its own, behind the code."
            )
        takes_code = is_interpreter and _CODE_FOLLOWS.fullmatch(argument.source) is not None
        is_interpreter = is_interpreter or _INTERPRETER.fullmatch(Path(argument.source).name) is not None


def _remote(written: _Entry, kind: Literal["http", "sse"], environment: Mapping[str, str]) -> RemoteSource:
    url = written.url or ""
    if written.args or written.env or written.cwd:
        raise ManifestError("args, env and cwd go with command, not with url.")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ManifestError("url is not a URL.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ManifestError("url must begin with http:// or https:// and a host.")
    if "${" in parts.scheme or "${" in parts.netloc:
        raise ManifestError("url cannot have placeholders in its scheme or host; its path and query can.")
    if parts.username is not None or parts.password is not None:
        raise ManifestError("url cannot have a user or password. Use headers.")
    if parts.fragment:
        raise ManifestError("url cannot have a fragment (#).")
    reason = refused_address(host, allows_private=written.gumcp.allow_private_addresses)
    if reason is not None:
        raise ManifestError(f"url names {reason}.")
    for name in written.headers:
        if not name or not all(character.isalnum() or character in "!#$%&'*+-.^_`|~" for character in name):
            raise ManifestError(f"headers has a name that is not a header's: {name!r}.")
    return RemoteSource(
        parse_text(url, environment),
        {name: parse_text(value, environment) for name, value in written.headers.items()},
        kind,
        written.gumcp.allow_private_addresses,
    )
