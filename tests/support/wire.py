"""HTTP and event streams in bytes: a client that sends exactly what a test wrote, and hides nothing that came back."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse
from typing import Any, Final

from tests.support.deadlines import WAIT_SECONDS, within

JSON: Final = {"Content-Type": "application/json"}
NEWEST_HANDSHAKE: Final = "2025-11-25"


@dataclass(frozen=True)
class Answer:
    """One whole HTTP response."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Event:
    """One event of a stream; a comment has the name `comment`."""

    name: str
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


def request_bytes(
    method: str, target: str | bytes, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    """One request as it goes over the wire. A header set to the empty text is left out."""
    target = target.encode("latin-1") if isinstance(target, str) else target
    fields = {"Host": "127.0.0.1", **({"Content-Length": str(len(body))} if body or method == "POST" else {})}
    fields = {**fields, **(headers or {})}
    head = b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in fields.items() if value)
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method.encode(), target, head, body)


def exchange(
    port: int, method: str, target: str | bytes, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Answer:
    """Make one request on a connection of its own and read the whole answer, to the connection's end."""
    with socket.create_connection(("127.0.0.1", port), WAIT_SECONDS) as connection:
        # A server may answer and close before it has read everything; the answer is there all the same.
        with contextlib.suppress(ConnectionError):
            connection.sendall(request_bytes(method, target, body, {"Connection": "close", **(headers or {})}))
        response = HTTPResponse(connection, method=method)
        try:
            response.begin()
            return Answer(response.status, response.headers, response.read())
        finally:
            response.close()


class SseStream:
    """A GET that is expected to be answered by an event stream, read by a thread of its own."""

    def __init__(self, port: int, target: str, headers: Mapping[str, str] | None = None) -> None:
        self._port = port
        self._connection = socket.create_connection(("127.0.0.1", port), WAIT_SECONDS)
        self._connection.sendall(
            request_bytes("GET", target, headers={"Accept": "text/event-stream", **(headers or {})})
        )
        self._response = HTTPResponse(self._connection, method="GET")
        self._response.begin()
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._passed_over: list[Event] = []
        self._ids = itertools.count(1)
        self.status = self._response.status
        self.headers = self._response.headers
        self.endpoint = ""
        self.closed_at: float | None = None
        """When the server ended the stream (monotonic seconds)."""
        if self.status == 200:
            self._connection.settimeout(None)
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
            first = self.next_event()
            assert first is not None, "the stream ended before its first event"
            assert first.name == "endpoint", first
            self.endpoint = first.data

    def __enter__(self) -> SseStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def refusal(self) -> Answer:
        """The answer, where it was no stream."""
        assert self.status != 200
        try:
            return Answer(self.status, self.headers, self._response.read())
        finally:
            self.close()

    def _read(self) -> None:
        name, data = "message", ""
        with contextlib.suppress(OSError, HTTPException, ValueError, AttributeError):
            while line := self._response.readline():
                text = line.decode().rstrip("\r\n")
                if text.startswith("event: "):
                    name = text[7:]
                elif text.startswith("data: "):
                    data += text[6:]
                elif text.startswith(":"):
                    self._events.put(Event("comment", text[1:].strip()))
                elif not text and data:
                    self._events.put(Event(name, data))
                    name, data = "message", ""
        self.closed_at = time.monotonic()
        self._events.put(None)

    def next_event(self, seconds: float = WAIT_SECONDS, *, comments: bool = False) -> Event | None:
        """The next event, promised within `seconds`, None at the stream's end; comments are passed over by default."""
        end = time.monotonic() + within(seconds)
        while True:
            try:
                event = self._events.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no event within {seconds} s") from None
            if event is None or comments or event.name != "comment":
                return event

    def wait_closed(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the server has ended the stream."""
        while self.next_event(seconds, comments=True) is not None:
            pass

    def is_silent(self) -> bool:
        """Whether nothing but comments has come that was not read yet."""
        waiting = []
        while not self._events.empty():
            waiting.append(self._events.get_nowait())
        for event in waiting:
            self._events.put(event)
        return not self._passed_over and all(event is not None and event.name == "comment" for event in waiting)

    def post(self, message: Any, headers: Mapping[str, str] | None = None, endpoint: str | None = None) -> Answer:
        """Post one message (or bytes as they are) to the session's endpoint."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return exchange(self._port, "POST", endpoint or self.endpoint, body, {**JSON, **(headers or {})})

    def send(self, message: Any) -> None:
        """Post one message that has to be accepted."""
        answer = self.post(message)
        assert (answer.status, answer.body) == (202, b"Accepted"), answer

    def answer(self, request_id: Any, seconds: float = WAIT_SECONDS) -> Any:
        """The JSON-RPC answer to a request; messages that come before it are kept for later."""
        for event in self._passed_over:
            if event.json.get("id") == request_id and "method" not in event.json:
                self._passed_over.remove(event)
                return event.json
        end = time.monotonic() + seconds
        while True:
            event = self.next_event(max(0.0, end - time.monotonic()))
            assert event is not None, f"the stream ended before request {request_id} was answered"
            if event.json.get("id") == request_id and "method" not in event.json:
                return event.json
            self._passed_over.append(event)

    def notifications(self) -> list[Any]:
        """The messages without an id that were passed over."""
        return [event.json for event in self._passed_over if "id" not in event.json]

    def request(self, method: str, params: Any = None, request_id: Any = None, seconds: float = WAIT_SECONDS) -> Any:
        """Send a request and return its answer."""
        request_id = f"r{next(self._ids)}" if request_id is None else request_id
        self.send(request(method, params, request_id))
        return self.answer(request_id, seconds)

    def initialize(self, version: str = NEWEST_HANDSHAKE, name: str = "wire", **params: Any) -> Any:
        """Shake hands and return the server's result."""
        client = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": name, "version": "0.1"}}
        answer = self.request("initialize", {**client, **params})
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer["result"]

    def call(self, tool: str, seconds: float = WAIT_SECONDS, request_id: Any = None, **arguments: Any) -> str:
        """Call a tool and return the text it answers with."""
        answer = self.request("tools/call", {"name": tool, "arguments": arguments}, request_id, seconds)
        assert "result" in answer, answer
        assert not answer["result"].get("isError"), answer
        return str(answer["result"]["content"][0]["text"])

    def close(self) -> None:
        """Leave, as a client does that was ended."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        if self.status == 200 and self._reader is not threading.current_thread():
            self._reader.join(WAIT_SECONDS)
        self._response.close()


def request(method: str, params: Any, request_id: Any) -> dict[str, Any]:
    """A JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, **({} if params is None else {"params": params})}


def tool_call(request_id: Any, tool: str, **arguments: Any) -> dict[str, Any]:
    """A JSON-RPC request that calls a tool."""
    return request("tools/call", {"name": tool, "arguments": arguments}, request_id)
