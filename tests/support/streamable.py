"""Streamable HTTP in bytes: requests that are under way, sessions of the handshake era, requests without sessions.

Everything waits for `WAIT_SECONDS` at most. HTTP+SSE is in `wire`, host processes in `host_process`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse
from types import TracebackType
from typing import Any, Final, Self

from tests.support.deadlines import WAIT_SECONDS
from tests.support.host_process import HostProcess
from tests.support.wire import JSON, NEWEST_HANDSHAKE, Answer, request, request_bytes

ACCEPT_BOTH: Final = {**JSON, "Accept": "application/json, text/event-stream"}
STATELESS: Final = "2026-07-28"
META: Final = "io.modelcontextprotocol/"


@dataclass(frozen=True)
class StreamEvent:
    """One event of a stream. One that only marks a place has no data; a comment has the name `comment`."""

    name: str
    data: str
    id: str | None = None
    retry: int | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class Request:
    """One request under way: sent when it is made, its response read when somebody asks."""

    def __init__(
        self,
        port: int,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        raw: bytes | None = None,
    ) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), WAIT_SECONDS)
        self._method = method
        self._response: HTTPResponse | None = None
        self.last_event_id: str | None = None
        self._connection.sendall(raw or request_bytes(method, target, body, {"Connection": "close", **(headers or {})}))

    def send_more(self, data: bytes) -> None:
        """Send what was left out of the request before."""
        self._connection.sendall(data)

    @property
    def response(self) -> HTTPResponse:
        if self._response is None:
            self._response = HTTPResponse(self._connection, method=self._method)
            self._response.begin()
        return self._response

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def headers(self) -> Message:
        return self.response.headers

    @property
    def is_stream(self) -> bool:
        return self.headers.get_content_type() == "text/event-stream"

    def answer(self) -> Answer:
        """The whole response, read to its end, which comments do not put off."""
        end = time.monotonic() + WAIT_SECONDS
        body = b""
        while part := self.response.read1():
            assert time.monotonic() < end, f"the response goes on and on: {body!r}"
            body += part
        answer = Answer(self.status, self.headers, body)
        self.leave()
        return answer

    def event(self, *, comments: bool = False) -> StreamEvent | None:
        """The next event of the stream, None at its end; comments are passed over unless asked for."""
        assert self.is_stream, self.answer()
        name, data, event_id, retry, is_empty = "message", [], None, None, True
        end = time.monotonic() + WAIT_SECONDS
        while line := self.response.readline().decode():
            assert time.monotonic() < end, "no event but comments"
            field, _, value = line.rstrip("\r\n").partition(": ")
            if line.startswith(":"):
                if comments:
                    return StreamEvent("comment", line[1:].strip())
            elif field in ("data", "data:"):
                data.append(value)
                is_empty = False
            elif field == "event":
                name = value
            elif field == "id":
                event_id = self.last_event_id = value
            elif field == "retry":
                retry = int(value)
            elif not is_empty:
                return StreamEvent(name, "\n".join(data), event_id, retry)
        return None

    def message(self) -> Any:
        """The next JSON-RPC message of the stream, None at its end."""
        while (event := self.event()) is not None and not event.data:
            pass
        return event and event.json

    def messages(self) -> list[Any]:
        """All messages to the stream's end."""
        return list(iter(self.message, None))

    def reply(self) -> Any:
        """The JSON-RPC answer, whichever way it comes."""
        if not self.is_stream:
            return self.answer().json
        while (message := self.message()) is not None:
            if "method" not in message:
                return message
        raise AssertionError("the stream ended without an answer")

    def text(self) -> str:
        """The text that a called tool answered with."""
        reply = self.reply()
        assert "result" in reply, reply
        assert not reply["result"].get("isError"), reply
        return str(reply["result"]["content"][0]["text"])

    def leave(self) -> None:
        """Close the connection, as a client does that was ended."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        if self._response is not None:
            self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()


def post(host: HostProcess, target: str, message: Any, headers: Mapping[str, str] | None = None) -> Request:
    """Post one message (or bytes as they are)."""
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return Request(host.port, "POST", target, body, {**ACCEPT_BOTH, **(headers or {})})


def initialize_message(version: str = NEWEST_HANDSHAKE, request_id: Any = "init", **params: Any) -> dict[str, Any]:
    """The first message of a handshake."""
    client = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "wire", "version": "0.1"}}
    return request("initialize", {**client, **params}, request_id)


class HandshakeSession:
    """A session of the handshake era over Streamable HTTP."""

    def __init__(
        self, host: HostProcess, server: str, key: str, version: str = NEWEST_HANDSHAKE, **params: Any
    ) -> None:
        self.host = host
        self.target = f"/{server}/{key}"
        self._ids = itertools.count(1)
        opened = post(host, self.target, initialize_message(version, **params)).answer()
        assert opened.status == 200, opened
        self.result = opened.json["result"]
        self.id = opened.headers["mcp-session-id"]
        self.headers = {"Mcp-Session-Id": self.id, "MCP-Protocol-Version": self.result["protocolVersion"]}
        assert self.notify("notifications/initialized").status == 202

    def post(self, message: Any, headers: Mapping[str, str] | None = None) -> Request:
        """Post one message and leave its response unread."""
        return post(self.host, self.target, message, {**self.headers, **(headers or {})})

    def notify(self, method: str, params: Any = None) -> Answer:
        message = {"jsonrpc": "2.0", "method": method, **({} if params is None else {"params": params})}
        return self.post(message).answer()

    def request(self, method: str, params: Any = None, request_id: Any = None) -> Request:
        """Send a request and leave its response unread."""
        return self.post(request(method, params, f"r{next(self._ids)}" if request_id is None else request_id))

    def start(self, tool: str, request_id: Any = None, meta: Any = None, **arguments: Any) -> Request:
        """Call a tool and leave its response unread."""
        params = {"name": tool, "arguments": arguments, **({"_meta": meta} if meta else {})}
        return self.request("tools/call", params, request_id)

    def call(self, tool: str, **arguments: Any) -> str:
        """Call a tool and return the text that it answers with."""
        with self.start(tool, **arguments) as under_way:
            return under_way.text()

    def respond(self, asked: Any, result: Any) -> None:
        """Answer what the server asked."""
        answer = self.post({"jsonrpc": "2.0", "id": asked["id"], "result": result}).answer()
        assert (answer.status, answer.body) == (202, b""), answer

    def get(self, last_event_id: str | None = None, headers: Mapping[str, str] | None = None) -> Request:
        """Open the standalone stream, or resume one."""
        resuming = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        fields = {**self.headers, "Accept": "text/event-stream", **resuming, **(headers or {})}
        return Request(self.host.port, "GET", self.target, headers=fields)

    def delete(self) -> Answer:
        return Request(self.host.port, "DELETE", self.target, headers=self.headers).answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self.delete()


@dataclass(frozen=True)
class StatelessClient:
    """Requests of 2026-07-28: each carries everything."""

    host: HostProcess
    server: str
    key: str
    capabilities: Mapping[str, Any] | None = None

    @property
    def target(self) -> str:
        return f"/{self.server}/{self.key}"

    def request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        request_id: Any = 1,
        meta: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Request:
        """Send a request and leave its response unread. A header set to the empty text is left out."""
        envelope = {
            f"{META}protocolVersion": STATELESS,
            f"{META}clientInfo": {"name": "wire", "version": "0.1"},
            f"{META}clientCapabilities": dict(self.capabilities or {}),
            **(meta or {}),
        }
        params = {**(params or {}), "_meta": envelope}
        named = params.get("name") or params.get("uri") if method in NAMED_METHODS else None
        fields = {
            "MCP-Protocol-Version": STATELESS,
            "Mcp-Method": method,
            **({"Mcp-Name": str(named)} if named else {}),
            **(headers or {}),
        }
        return post(self.host, self.target, request(method, params, request_id), fields)

    def start(self, tool: str, **arguments: Any) -> Request:
        """Call a tool and leave its response unread."""
        return self.request("tools/call", {"name": tool, "arguments": arguments})

    def call(self, tool: str, **arguments: Any) -> str:
        """Call a tool and return the text that it answers with."""
        with self.start(tool, **arguments) as under_way:
            return under_way.text()


NAMED_METHODS: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
"""Methods whose requests repeat what they name in the header Mcp-Name."""


def bare(answer: Answer) -> tuple[int, list[tuple[str, str]], bytes]:
    """All of an answer but its date: what must not differ between somebody else's session and none."""
    headers = sorted((name.lower(), value) for name, value in answer.headers.items() if name.lower() != "date")
    return answer.status, headers, answer.body


def each(texts: Iterator[Any]) -> list[Any]:
    """The data of log notifications."""
    return [message["params"]["data"] for message in texts if message.get("method") == "notifications/message"]
