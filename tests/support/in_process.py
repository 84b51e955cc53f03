"""A host and its clients inside the test's own process: ASGI requests without an HTTP server. Fast, and no ports.

Requests go through `HttpRouter`, as those of a real ASGI server do. Clients of real processes: `wire`, `streamable`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from gateway.catalog.discovery import discover
from gateway.catalog.registry import Registry
from gateway.endpoints.routing import HttpRouter
from gateway.host.host import Host
from gateway.tracing.tracing import Tracing
from tests.support.streamable import ACCEPT_BOTH, META, STATELESS, initialize_message
from tests.support.wire import NEWEST_HANDSHAKE, request

WAIT_SECONDS: Final = 10.0
"""How long anything may take that is expected to happen."""


async def no_django(scope: Any, receive: Any, send: Any) -> None:
    """Stand for Django in tests that do not ask for its pages."""
    raise AssertionError(f"{scope['path']} was passed to Django")


@asynccontextmanager
async def host_in_process(
    servers: Path, django: Any = no_django, tracing: Tracing | None = None
) -> AsyncIterator[InProcessHost]:
    """A host that serves the folders in `servers`, without database, metrics and upkeep."""
    host = Host(Registry(discover([servers])), tracing=tracing)
    host.loop.bind()
    in_process = InProcessHost(host, django)
    try:
        yield in_process
    finally:
        for exchange in in_process.exchanges:
            exchange.leave()
        await asyncio.wait_for(
            asyncio.gather(*(exchange.task for exchange in in_process.exchanges), return_exceptions=True), WAIT_SECONDS
        )
        for session in host.sessions:
            session.end()
        await host.instances.stop()
        await asyncio.to_thread(host.close)


@dataclass(frozen=True)
class Reply:
    """One whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class InProcessHost:
    """A host and the requests that were made to it."""

    def __init__(self, host: Host, django: Any) -> None:
        self.host = host
        self.application = HttpRouter(host, django)
        self.exchanges: list[Exchange] = []

    def open(
        self,
        method: str,
        target: str,
        body: bytes | None = b"",
        headers: Mapping[str, str] | None = None,
        address: str = "127.0.0.1",
    ) -> Exchange:
        """Make a request and leave its response unread. A body of None is left out: send it with `send_body`."""
        exchange = Exchange(self.application, method, target, headers or {}, address)
        if body is not None:
            exchange.send_body(body)
        self.exchanges.append(exchange)
        return exchange

    async def request(self, *arguments: Any, **options: Any) -> Reply:
        """Make a request and return its whole response."""
        return await self.open(*arguments, **options).reply()

    def post(self, target: str, message: Any, headers: Mapping[str, str] | None = None, **options: Any) -> Exchange:
        """Post one message (or bytes as they are)."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self.open("POST", target, body, {**ACCEPT_BOTH, **(headers or {})}, **options)

    async def initialize(self, target: str, version: str = NEWEST_HANDSHAKE, **options: Any) -> HandshakeClient:
        """Open a Streamable HTTP session."""
        opened = await self.post(target, initialize_message(version), **options).reply()
        assert opened.status == 200, opened
        client = HandshakeClient(self, target, opened)
        assert (await client.post({"jsonrpc": "2.0", "method": "notifications/initialized"}).reply()).status == 202
        return client

    async def open_sse(self, target: str, headers: Mapping[str, str] | None = None) -> SseClient:
        """Open an HTTP+SSE stream."""
        exchange = self.open("GET", target, headers={"Accept": "text/event-stream", **(headers or {})})
        return SseClient(self, exchange, (await exchange.event()).data)

    def post_stateless(
        self, target: str, method: str, params: Mapping[str, Any] | None = None, **options: Any
    ) -> Exchange:
        """Make a request of the stateless protocol."""
        meta = {f"{META}protocolVersion": STATELESS, f"{META}clientCapabilities": {}}
        headers = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": method}
        if method == "tools/call":
            headers["Mcp-Name"] = (params or {})["name"]
        return self.post(target, request(method, {**(params or {}), "_meta": meta}, 1), headers, **options)


class Exchange:
    """One request and what has come back so far."""

    def __init__(self, application: Any, method: str, target: str, headers: Mapping[str, str], address: str) -> None:
        path, _, query = target.partition("?")
        fields = {"Host": "localhost", **headers}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode("latin-1"),
            "query_string": query.encode(),
            "root_path": "",
            "scheme": "http",
            "headers": [(name.lower().encode(), value.encode()) for name, value in fields.items()],
            "client": (address, 1),
            "server": ("127.0.0.1", 80),
        }
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._news = asyncio.Event()
        self._start: Any = None
        self._body = b""
        self._is_ended = False
        self.may_read = asyncio.Event()
        """Whether the client reads. Cleared, every `send` waits."""
        self.may_read.set()
        self.task = asyncio.create_task(application(scope, self._inbox.get, self._send))

    async def _send(self, message: Any) -> None:
        await self.may_read.wait()
        if message["type"] == "http.response.start":
            self._start = message
        else:
            self._body += message.get("body", b"")
            self._is_ended = not message.get("more_body", False)
        self._news.set()

    def send_body(self, body: bytes) -> None:
        """Send the whole body."""
        self._inbox.put_nowait({"type": "http.request", "body": body})

    def leave(self) -> None:
        """Close the connection."""
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def _until(self, condition: Any) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition() and not self.task.done():
                self._news.clear()
                waiting = asyncio.create_task(self._news.wait())
                await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        if self.task.done() and not self.task.cancelled():
            self.task.result()  # what the application raised

    async def head(self) -> Any:
        """The response's start message."""
        await self._until(lambda: self._start is not None)
        assert self._start is not None, "there was no response"
        return self._start

    async def status(self) -> int:
        return int((await self.head())["status"])

    async def reply(self) -> Reply:
        """The whole response."""
        async with asyncio.timeout(WAIT_SECONDS):
            await self.task
        assert self._is_ended, "the response has no end"
        headers = {name.decode(): value.decode() for name, value in self._start["headers"]}
        return Reply(int(self._start["status"]), headers, self._body)

    @property
    def is_ended(self) -> bool:
        return self._is_ended

    async def event(self, *, comments: bool = False) -> Event:
        """The next event of the response; comments are passed over unless asked for."""
        while True:
            await self._until(lambda: b"\r\n\r\n" in self._body)
            assert b"\r\n\r\n" in self._body, f"no event but {self._body!r}"
            text, _, self._body = self._body.partition(b"\r\n\r\n")
            event = Event.read(text.decode())
            if comments or event.name != "comment":
                return event

    async def message(self) -> Any:
        """The next JSON-RPC message of the response; events that only mark a place are passed over."""
        while not (event := await self.event()).data:
            pass
        return event.json


@dataclass(frozen=True)
class Event:
    """One event of a stream. One that only marks a place has no data; a comment has the name `comment`."""

    name: str
    data: str
    id: str | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @classmethod
    def read(cls, text: str) -> Event:
        if text.startswith(":"):
            return cls("comment", text[1:].strip())
        # As clients do that know Unicode's line breaks: what they see must be the same.
        fields = dict(line.partition(": ")[::2] for line in text.splitlines())
        return cls(fields.get("event", "message"), fields.get("data", ""), fields.get("id"))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread changes."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 (there is no event to wait for)
            await asyncio.sleep(0.005)


def held(host: InProcessHost) -> int:
    """How much memory the messages of the host hold, in bytes."""
    return host.host.message_budget.held_bytes


class HandshakeClient:
    """A client with a Streamable HTTP session."""

    def __init__(self, host: InProcessHost, target: str, opened: Reply) -> None:
        self._host = host
        self.target = target
        self.id = opened.headers["mcp-session-id"]
        self.result = opened.json["result"]
        self.headers = {"Mcp-Session-Id": self.id, "MCP-Protocol-Version": self.result["protocolVersion"]}
        self._ids = itertools.count(1)

    def post(self, message: Any, headers: Mapping[str, str] | None = None, **options: Any) -> Exchange:
        """Post one message, or several as a list."""
        return self._host.post(self.target, message, {**self.headers, **(headers or {})}, **options)

    def start(self, tool: str, request_id: Any = None, **arguments: Any) -> Exchange:
        """Call a tool and leave its response unread."""
        request_id = f"r{next(self._ids)}" if request_id is None else request_id
        return self.post(request("tools/call", {"name": tool, "arguments": arguments}, request_id))

    async def call(self, tool: str, **arguments: Any) -> str:
        """Call a tool that answers with JSON, and return its text."""
        reply = (await self.start(tool, **arguments).reply()).json
        assert "result" in reply, reply
        assert not reply["result"].get("isError"), reply
        return str(reply["result"]["content"][0]["text"])

    def get(self, last_event_id: str | None = None) -> Exchange:
        """Open the standalone stream, or resume one."""
        resuming = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        return self._host.open("GET", self.target, headers={**self.headers, "Accept": "text/event-stream", **resuming})

    async def delete(self) -> int:
        return (await self._host.request("DELETE", self.target, headers=self.headers)).status


class StreamClient(ABC):
    """A client that gets all messages of its session on one event stream."""

    def __init__(self, stream: Exchange) -> None:
        self.stream = stream
        self._ids = itertools.count(1)

    @abstractmethod
    async def send(self, message: Any) -> None:
        """Post one message that has to be accepted."""

    async def request(self, method: str, params: Any = None) -> Any:
        """Send a request and return its answer; what comes before it is passed over."""
        request_id = f"r{next(self._ids)}"
        await self.send(request(method, params, request_id))
        while (message := await self.stream.message()).get("id") != request_id:
            pass
        return message

    async def call(self, tool: str, **arguments: Any) -> str:
        """Call a tool and return the text it answers with."""
        answer = await self.request("tools/call", {"name": tool, "arguments": arguments})
        assert "result" in answer, answer
        return str(answer["result"]["content"][0]["text"])


class SseClient(StreamClient):
    """A client with an HTTP+SSE session."""

    def __init__(self, host: InProcessHost, stream: Exchange, endpoint: str) -> None:
        super().__init__(stream)
        self._host = host
        self.endpoint = endpoint

    def post(self, message: Any, **options: Any) -> Exchange:
        """Post one message."""
        return self._host.post(self.endpoint, message, **options)

    async def send(self, message: Any) -> None:
        """Post one message that has to be accepted."""
        reply = await self.post(message).reply()
        assert (reply.status, reply.body) == (202, b"Accepted"), reply

    async def initialize(self, version: str = NEWEST_HANDSHAKE) -> Any:
        answer = await self.request("initialize", initialize_message(version)["params"])
        await self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer["result"]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stream.leave()
        with suppress(asyncio.CancelledError):
            await self.stream.task
