"""The pair of streams that joins one session to the SDK's message loop, without the SDK's memory streams.

Lives here: the hand-over between the host's loop (which reads requests) and the lane (which runs handlers), and the
session's accounts of what is in flight. Shaped after `mcp.shared._stream_protocols` (mcp 2.3).
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import anyio
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp_types import INVALID_REQUEST, JSONRPCError, JSONRPCRequest, JSONRPCResponse, RequestId
from starlette.requests import Request

from gateway import metrics
from gateway.exceptions import DuplicateRequestId, RepeatedInitialize, SessionBacklogFull, StreamClosed
from gateway.http.asgi import Scope
from gateway.instances.lanes import Lane
from gateway.jsonrpc import INITIALIZE, JSONRPCMessage, request_key
from gateway.transports.sessions import MAX_FACT_LENGTH, Session


class Inbound:
    """What the client says: filled from the host's loop, read by the session's message loop in its lane."""

    def __init__(self, lane: Lane, wait_for_room: Callable[[], Awaitable[None]] | None) -> None:
        self._lane = lane
        self._wait_for_room = wait_for_room
        self._items: deque[SessionMessage] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: SessionMessage) -> None:
        """Add a message. Called on the host's loop."""
        self._items.append(item)
        self._lane.post(self._wake)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> SessionMessage:
        """The next message, in the order of arrival.

        Raises:
            anyio.EndOfStream: the stream was closed.
        """
        while True:
            while not self._items:
                if self._is_closed:
                    raise anyio.EndOfStream
                self._waiter = asyncio.get_running_loop().create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            if self._wait_for_room is not None:
                try:
                    await self._wait_for_room()
                except StreamClosed:
                    raise anyio.EndOfStream from None
            if self._items:
                return self._items.popleft()

    async def peek(self) -> SessionMessage:
        """The next message, left where it is. Raises what `receive` raises."""
        item = await self.receive()
        self._items.appendleft(item)
        return item

    async def aclose(self) -> None:
        """Close the stream. Called in the lane."""
        self._is_closed = True
        self._items.clear()
        self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class Link:
    """One session's way into its message loop: admits what the client sends, and keeps the accounts of it."""

    def __init__(
        self,
        session: Session,
        lane: Lane,
        max_backlog: int,
        wait_for_room: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`wait_for_room` waits, in the lane, until the client has read enough to be asked for more.

        Without it a client that posts and does not read has every answer held for it: 64 MiB asked for cost 240 MiB.
        """
        self.session = session
        self._max_backlog = max_backlog
        self.inbound = Inbound(lane, wait_for_room)
        self.is_initialized = False
        """Whether the server has accepted `initialize`."""
        self._initialize_key: RequestId | None = None
        self._count_in = metrics.messages.labels(session.server_name, "in")
        self._count_out = metrics.messages.labels(session.server_name, "out")

    def admit(
        self,
        message: JSONRPCMessage,
        scope: Scope,
        metadata: ServerMessageMetadata | None = None,
        on_admitted: Callable[[], None] | None = None,
    ) -> None:
        """Hand `message` to the server. Called on the host's loop.

        `scope` is the request as the server's handlers may see it. `metadata` carries what the transport offers to the
        handler. `on_admitted` is called once nothing can be refused any more, before the server can see the message.

        Raises:
            DuplicateRequestId: its id is in flight, so an answer could not be told from the first one's.
            RepeatedInitialize: the session has been initialized before.
            SessionBacklogFull: the session has too much under way already.
        """
        session = self.session
        # Requests and other messages are bounded apart: a session whose calls all wait for an answer from the client
        # must be able to take it.
        backlog = session.in_flight if isinstance(message, JSONRPCRequest) else self.inbound
        if len(backlog) >= self._max_backlog:
            raise SessionBacklogFull("Too many messages of this session are waiting. Read the answers first.")
        metadata = metadata or ServerMessageMetadata()
        metadata.request_context = Request(scope)
        if isinstance(message, JSONRPCRequest):
            key = request_key(message.id)
            if key in session.in_flight:
                raise DuplicateRequestId(
                    "A request with this id is still in flight on this session.", INVALID_REQUEST, message.id
                )
            if message.method == INITIALIZE:
                # Spec 2025-11-25 basic/lifecycle#initialization: the first interaction, so it happens once.
                if self._initialize_key is not None:
                    raise RepeatedInitialize("This session is initialized already.", INVALID_REQUEST, message.id)
                self._initialize_key = key
                self._note_client(message)
            elif message.method == "tools/call":
                session.calls += 1
            session.in_flight[key] = time.monotonic()

            end_on_wire = metadata.on_request_unanswered

            async def settle() -> None:  # a cancelled request is never answered
                session.in_flight.pop(key, None)
                if end_on_wire is not None:
                    await end_on_wire()

            metadata.on_request_unanswered = settle
        if on_admitted is not None:
            on_admitted()
        session.note_incoming()
        self._count_in.inc()
        self.inbound.put(SessionMessage(message, metadata))

    async def opens_with_handshake(self) -> bool:
        """Wait for the session's first message; whether it is `initialize`. Called in the lane."""
        try:
            opening = (await self.inbound.peek()).message
        except anyio.EndOfStream:
            return False
        return isinstance(opening, JSONRPCRequest) and opening.method == INITIALIZE

    def note_answer(self, message: JSONRPCMessage) -> None:
        """Account for a message to the client. Called in the lane, before the client can see it."""
        self.session.note_outgoing()
        self._count_out.inc()
        if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
            key = request_key(message.id)
            self.session.in_flight.pop(key, None)
            if isinstance(message, JSONRPCResponse):
                self.session.is_established = True
            if key == self._initialize_key and isinstance(message, JSONRPCResponse):
                self.is_initialized = True
                # What the server settled for, which may be another version than the client proposed.
                self.session.protocol_version = str(message.result.get("protocolVersion", ""))[:MAX_FACT_LENGTH]

    def _note_client(self, message: JSONRPCRequest) -> None:
        params = message.params or {}
        client = params.get("clientInfo")
        client = client if isinstance(client, dict) else {}
        self.session.note_client(client.get("name"), client.get("version"), params.get("protocolVersion"))
