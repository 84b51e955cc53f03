"""The clients that the doctor plays: where each puts its key, what it looks up first, and its handshake.

Spec: 2024-11-05, 2025-11-25 and 2026-07-28 basic/transports.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from gateway.console.doctor.findings import Cause, Fault
from gateway.console.doctor.wire import EVENT_STREAM, Answer, Stream, Wire, is_answer, media_type

HANDSHAKE: Final = "2025-11-25"
FIRST: Final = "2024-11-05"
STATELESS: Final = "2026-07-28"

MOST_TOOLS_OF_VS_CODE: Final = 128

_META: Final = "io.modelcontextprotocol/"


@dataclass(frozen=True, slots=True)
class Target:
    """One server of the host, as a client is told to reach it."""

    base: str
    """The host's address, without a slash at its end."""
    url: str
    headers: Mapping[str, str]
    """Those that the user configured: the key."""


@dataclass(frozen=True, slots=True)
class Client:
    """One client as it is met in the field."""

    name: str
    user_agent: str
    protocol: str = HANDSHAKE
    has_key_in_url: bool = False
    """Whether it has no field for a header."""
    looks_for_oauth: bool = False
    """Whether it asks for OAuth metadata before it connects."""
    most_tools: int | None = None

    def connect(self, wire: Wire, target: Target) -> str:
        """Play the handshake, and return what the client sees.

        Raises:
            Fault
        """
        if self.looks_for_oauth:
            look_for_oauth(wire, target)
        if self.protocol == FIRST:
            return _over_sse(wire, target)
        if self.protocol == STATELESS:
            return _stateless(wire, target)
        seen, tools = _over_streamable_http(wire, target)
        if self.most_tools is not None and tools > self.most_tools:
            seen += f" (it takes {self.most_tools} at most)"
        return seen


CLIENTS: Final = (
    Client("claude.ai", "Claude-User", has_key_in_url=True, looks_for_oauth=True),
    Client("ChatGPT", "openai-mcp/1.0.0", has_key_in_url=True, looks_for_oauth=True),
    Client("Claude Code", "claude-code/2.0"),
    Client("VS Code", "Visual Studio Code/1.106", most_tools=MOST_TOOLS_OF_VS_CODE),
    Client("Cursor", "Cursor/2.0"),
    Client("mcp-remote", "node", looks_for_oauth=True),
    Client("SDK of 2024-11-05 (HTTP+SSE)", "python-httpx/0.28", protocol=FIRST, has_key_in_url=True),
    Client("SDK of 2025-11-25", "python-httpx/0.28"),
    Client("SDK of 2026-07-28 (stateless)", "python-httpx2/2.16", protocol=STATELESS),
)


def request(method: str, params: Any = None, request_id: int = 1) -> dict[str, Any]:
    """A JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, **({} if params is None else {"params": params})}


def initialize(protocol: str) -> dict[str, Any]:
    """The first message of a handshake."""
    info = {"name": "gumcp-doctor", "version": "1"}
    return request("initialize", {"protocolVersion": protocol, "capabilities": {}, "clientInfo": info})


INITIALIZED: Final = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def look_for_oauth(wire: Wire, target: Target) -> None:
    """Ask for OAuth metadata, which this host does not have: 404 as JSON.

    Raises:
        Fault
    """
    for document in ("oauth-protected-resource", "oauth-authorization-server"):
        answer = wire.ask("GET", f"{target.base}/.well-known/{document}", headers={"Accept": "application/json"})
        what = f"GET /.well-known/{document}"
        refuse_redirect(wire, what, answer)
        if answer.status == 404 and answer.json is None:
            raise Fault(Cause.TEXT_NOT_FOUND, f"{what} answered 404 as {answer.content_type or 'nothing'}")
        if answer.status != 404 and not (answer.status == 200 and isinstance(answer.json, dict)):
            raise Fault(Cause.UNEXPECTED, f"{what} answered {answer.status} as {answer.content_type or 'nothing'}")


def refuse_redirect(wire: Wire, what: str, answer: Answer) -> None:
    """Raises `Fault` if `answer` is a redirect."""
    if answer.status in (301, 302, 303, 307, 308):
        raise Fault(
            Cause.REDIRECT, f"{what} answered {answer.status} to {wire.shown(answer.headers.get('location', ''))}"
        )


def require(wire: Wire, what: str, answer: Answer, *statuses: int) -> Answer:
    """Return `answer` if it has one of `statuses`.

    Raises:
        Fault: with the cause that the status stands for.
    """
    if answer.status in statuses and answer.content_type != "text/html":
        return answer
    refuse_redirect(wire, what, answer)
    reason = _error_text(answer.json)
    seen = f"{what} answered {answer.status}" + (f": {wire.shown(reason)}" if reason else "")
    if answer.status == 404 and answer.json is None:
        seen += f" as {answer.content_type or 'nothing'}"
    raise Fault(_cause_of(answer), seen)


def _cause_of(answer: Answer) -> Cause:
    match answer.status:
        case 401:
            return Cause.WRONG_KEY
        case 403:
            return Cause.NOT_ALLOWED
        case 404:
            return Cause.TEXT_NOT_FOUND if answer.json is None else Cause.WRONG_URL
        case 421:
            return Cause.WRONG_URL
        case 503 if answer.content_type == "application/json":  # a proxy answers with a page
            return Cause.NO_SERVER
        case 502 | 503 | 504:
            return Cause.UNREACHABLE
    return Cause.WRONG_URL if answer.content_type == "text/html" else Cause.UNEXPECTED


def _error_text(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return text if isinstance(text, str) else ""


def _result(wire: Wire, what: str, body: Any) -> dict[str, Any]:
    result = body.get("result") if isinstance(body, dict) else None
    if not isinstance(result, dict):
        raise Fault(Cause.UNEXPECTED, f"{what} has no result: {wire.shown(_error_text(body)) or 'not a message'}")
    return result


def _count_of_tools(wire: Wire, body: Any) -> int:
    if isinstance(body, dict) and isinstance(body.get("error"), dict) and body["error"].get("code") == -32601:
        return 0  # a server without tools
    tools = _result(wire, "tools/list", body).get("tools")
    return len(tools) if isinstance(tools, list) else 0


def _over_streamable_http(wire: Wire, target: Target) -> tuple[str, int]:
    """The handshake of 2025. Returns what is seen and the number of tools."""
    message = initialize(HANDSHAKE)
    opened = require(wire, "POST", wire.ask("POST", target.url, headers=target.headers, message=message), 200)
    protocol = str(_result(wire, "initialize", opened.json).get("protocolVersion", ""))
    session_id = opened.headers.get("mcp-session-id")
    if session_id is None:
        raise Fault(Cause.LOST_HEADER, "the answer to initialize has no Mcp-Session-Id")
    headers = {**target.headers, "Mcp-Session-Id": session_id, "MCP-Protocol-Version": protocol}
    try:
        accepted = wire.ask("POST", target.url, headers=headers, message=INITIALIZED)
        require(wire, "notifications/initialized", accepted, 202, 200)
        listed = wire.ask("POST", target.url, headers=headers, message=request("tools/list", request_id=2))
        tools = _count_of_tools(wire, require(wire, "tools/list", listed, 200).json)
        try:
            with wire.listen(target.url, headers) as stream:
                require_stream(wire, stream)
        except TimeoutError:
            raise Fault(Cause.BUFFERING, "the head of the session's event stream does not come") from None
    finally:
        with suppress(Fault):  # the session expires
            wire.ask("DELETE", target.url, headers=headers)
    return f"initialize ({wire.shown(protocol)}), {tools} tools, event stream", tools


def _stateless(wire: Wire, target: Target) -> str:
    meta = {
        f"{_META}protocolVersion": STATELESS,
        f"{_META}clientInfo": {"name": "gumcp-doctor", "version": "1"},
        f"{_META}clientCapabilities": {},
    }
    bodies = []
    for request_id, method in enumerate(("server/discover", "tools/list"), start=1):
        headers = {**target.headers, "MCP-Protocol-Version": STATELESS, "Mcp-Method": method}
        answer = wire.ask("POST", target.url, headers=headers, message=request(method, {"_meta": meta}, request_id))
        bodies.append(require(wire, method, answer, 200, 404 if method == "tools/list" else 200).json)
    _result(wire, "server/discover", bodies[0])
    return f"server/discover ({STATELESS}), {_count_of_tools(wire, bodies[1])} tools, no session"


def _over_sse(wire: Wire, target: Target) -> str:
    """The handshake of 2024: the answers come on a stream that stays open."""
    try:
        with wire.listen(target.url, target.headers) as stream:
            require_stream(wire, stream)
            frames = stream.frames()
            url = endpoint_url(wire, target, next(data for name, data in frames if name == "endpoint"))
            headers = target.headers
            accepted = wire.ask("POST", url, headers=headers, message=initialize(FIRST))
            require(wire, "POST to the endpoint", accepted, 202, 200)
            body = _message_on(stream, 1)
            protocol = str(_result(wire, "initialize", body).get("protocolVersion", ""))
            wire.ask("POST", url, headers=headers, message=INITIALIZED)
            wire.ask("POST", url, headers=headers, message=request("tools/list", request_id=2))
            tools = _count_of_tools(wire, _message_on(stream, 2))
    except TimeoutError:
        raise Fault(Cause.BUFFERING, "the event stream is open, and its events do not come") from None
    return f"endpoint, initialize ({wire.shown(protocol)}), {tools} tools"


def _message_on(stream: Stream, request_id: int) -> Any:
    return next(json.loads(data) for name, data in stream.frames() if name == "message" and is_answer(data, request_id))


def require_stream(wire: Wire, stream: Stream) -> None:
    """Check the head of an event stream.

    Raises:
        Fault
    """
    content_type = media_type(stream.headers)
    if stream.status != 200 or content_type != EVENT_STREAM:
        # Its body may never end, so it is not read.
        require(wire, "GET (event stream)", Answer(stream.status, stream.headers, b"{}"))
        raise Fault(Cause.UNEXPECTED, f"GET (event stream) answered {wire.shown(content_type) or 'no media type'}")
    if stream.headers.get("content-encoding", "identity") != "identity":
        raise Fault(Cause.COMPRESSION, f"the event stream is sent as {wire.shown(stream.headers['content-encoding'])}")


def endpoint_url(wire: Wire, target: Target, data: bytes) -> str:
    """Where the client of an HTTP+SSE stream posts to: the endpoint event must lead back to the same address.

    Raises:
        Fault
    """
    url = urljoin(target.url, data.decode("utf-8", "replace"))
    here, there = urlsplit(target.url), urlsplit(url)
    if (here.scheme, here.netloc) != (there.scheme, there.netloc) or not there.path.startswith(f"{here.path}/"):
        raise Fault(
            Cause.WRONG_URL,
            f"the endpoint event leads to {wire.shown(url.partition('?')[0])}, not below {wire.shown(target.url)}",
        )
    return url
