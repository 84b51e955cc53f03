"""A connection of our Daphne in this process: bytes in, bytes out, no socket and no thread."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport

from gateway.serving.bodies import UnfinishedBodies
from gateway.serving.connection import HttpConnection
from gateway.serving.connections import ConnectionFactory
from gateway.serving.exchange import Exchange
from gateway.serving.limits import ServingEvent, ServingHooks, ServingLimits
from gateway.serving.turns import BodyTurns

AsgiApplication = Callable[[Any, Any, Any], Awaitable[None]]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer what was asked, as JSON."""
    message = await receive()
    content = {
        "method": scope["method"],
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode("latin-1"),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
        "body": message["body"].decode("latin-1"),
    }
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})


class _Socket:
    def setsockopt(self, *option: int) -> None:
        """Take any option."""


class Transport(StringTransport):  # type: ignore[misc]
    """Keeps what is written. `unread_bytes` is how much of it the client has not taken."""

    offset = 0
    _tempDataLen = 0
    unread_bytes = 0
    is_half_closed = False
    is_aborted = False

    def __init__(self, source: str) -> None:
        super().__init__(
            peerAddress=IPv4Address("TCP", source, 50_000), hostAddress=IPv4Address("TCP", "127.0.0.1", 80)
        )
        self.socket = _Socket()

    @property
    def dataBuffer(self) -> bytes:
        return bytes(self.unread_bytes)

    def abortConnection(self) -> None:
        self.is_aborted = True
        super().abortConnection()

    def loseWriteConnection(self) -> None:
        self.is_half_closed = True


class LocalServer:
    """What a connection needs of a server; runs the application in the loop of the test."""

    root_path = ""
    server_name = ""
    action_logger = None
    proxy_forwarded_address_header: str | None = None
    proxy_forwarded_port_header: str | None = None
    proxy_forwarded_proto_header: str | None = None
    handover = None

    def __init__(self, application: AsgiApplication = echo, **limits: Any) -> None:
        self.limits = ServingLimits(**limits)
        self.hooks = ServingHooks(on_event=lambda event: self.events.append(event))
        self.events: list[ServingEvent] = []
        self.unfinished_bodies: UnfinishedBodies[HttpConnection] = UnfinishedBodies(self.limits.unfinished_bodies_bytes)
        self.body_turns = BodyTurns(asyncio.get_running_loop().call_soon)
        self.is_draining = False
        self.served: list[Exchange] = []
        self.factory = ConnectionFactory(self)
        self._application = application
        self._tasks: list[asyncio.Task[None]] = []

    def log_action(self, protocol: str, action: str, details: dict[str, Any]) -> None:
        raise AssertionError("nothing is logged")

    def serve(self, exchange: Exchange) -> None:
        self.served.append(exchange)
        self._tasks.append(asyncio.ensure_future(self._run(exchange)))

    async def _run(self, exchange: Exchange) -> None:
        with contextlib.suppress(ValueError):  # the exchange raises it at a response that it cannot send
            await self._application(exchange.scope(), exchange.receive, exchange.send)
        exchange.application_ended(failure_status=500)

    def something_ended(self) -> None:
        """Nothing waits."""

    def give_idle_connections(self) -> None:
        """There is nobody who could take them."""

    def drain(self) -> None:
        """Begin to drain, as a process that is told to stop."""
        self.is_draining = True
        for connection in list(self.factory.open):
            connection.drain()

    def connect(self, source: str = "127.0.0.1", *, was_idle: bool = False) -> Client:
        """Open a connection, or take one that another process had."""
        transport = Transport(source)
        connection = self.factory.buildProtocol(transport.getPeer())
        connection.was_idle = was_idle
        connection.makeConnection(transport)
        return Client(self, connection, transport)


class Client:
    """The other end of a connection."""

    def __init__(self, server: LocalServer, connection: Any, transport: Transport) -> None:
        self.connection = connection
        self.transport = transport
        self._server = server

    async def send(self, data: bytes) -> None:
        """Have the connection read `data`, and let applications run to where they wait."""
        self.connection.dataReceived(data)
        await self.settle()

    async def settle(self) -> None:
        """Let applications run to where they wait."""
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def answer(self) -> bytes:
        """Everything that was answered so far."""
        return bytes(self.transport.value())

    @property
    def is_closed(self) -> bool:
        """Whether the connection has closed its side."""
        return bool(self.transport.is_half_closed or self.transport.disconnecting)

    def leave(self) -> None:
        """Close the connection."""
        self.connection.connectionLost(None)
