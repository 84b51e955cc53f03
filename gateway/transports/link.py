"""Joins one session to the SDK's message loop.

Lives here: the hand-over from the host's loop, which reads requests, to the lane, which runs handlers, and the record
of the requests that are in flight. It takes the place of the SDK's memory streams and has the shape of
`mcp.shared._stream_protocols` (mcp 2.3). Not here: the loop itself (`message_loop`), where answers go (`sse`,
`streamable_http`).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import anyio
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp_types import INTERNAL_ERROR, INVALID_REQUEST, JSONRPCNotification, JSONRPCRequest, RequestId
from starlette.requests import Request

from gateway import metrics, signals
from gateway.exceptions import DuplicateRequestId, RepeatedInitialize, SessionBacklogFull, StreamClosed, TooManyRequests
from gateway.http.asgi import Scope
from gateway.instances.call_log import MAX_NAME_LENGTH, Conversation, note_answer_size
from gateway.instances.lanes import Lane
from gateway.jsonrpc import INITIALIZE, JSONRPCMessage, error_body, request_key
from gateway.transports.message_budget import RETRY_SECONDS, SMALL_OUTGOING_BYTES, WITHHELD, MessageMemory
from gateway.transports.session_state import INITIALIZED, STATE_METHODS
from gateway.transports.sessions import MAX_FACT_LENGTH, Session


class MessageStream:
    """What the SDK reads a session's messages from."""

    async def receive(self) -> SessionMessage:
        """The next message. Raises anyio.EndOfStream when there will be none."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the stream."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """The same, as the SDK calls it."""
        self.close()

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
        self.close()


class Inbound(MessageStream):
    """The client's messages on their way to the session's message loop.

    Threads: `put` is called on the host's loop, `__len__` on any thread, everything else in the lane.
    """

    def __init__(
        self, lane: Lane, wait_for_room: Callable[[], Awaitable[None]] | None, must_wait: Callable[[], bool]
    ) -> None:
        self._lane = lane
        self._wait_for_room = wait_for_room
        self._must_wait = must_wait
        # A list, although it is used as a queue: it is nearly always empty, and an empty deque takes 700 bytes.
        self._items: list[tuple[SessionMessage, MessageMemory | None]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._is_wake_coming = False
        """Whether the lane has been told of messages and has not looked yet."""
        self._is_closed = False
        self.take_at_once: Callable[[SessionMessage], bool] | None = None
        """Takes a message without the message loop, if it can. Set in the lane."""

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: SessionMessage, memory: MessageMemory | None = None) -> None:
        """Add a message. `memory` is released when the message loop takes it."""
        self._items.append((item, memory))
        # Looked at after the message was added, and taken back before the lane looks for messages.
        if not self._is_wake_coming:
            self._is_wake_coming = True
            self._lane.wakeups.send(self._look)
        # Look after the message was added: `close`, on the other thread, looks after it has closed the stream.
        if self._is_closed:
            self._clear()

    def _look(self) -> None:
        """Take what has come, or wake the message loop. If it is busy, it looks by itself when it is done."""
        self._is_wake_coming = False
        if self._waiter is None or self._is_closed:
            return
        if self.take_at_once is not None and not self._must_wait():
            while self._items and self.take_at_once(self._items[0][0]):
                _, memory = self._items.pop(0)
                if memory is not None:
                    memory.release()
        if self._items:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait_for_item(self) -> None:
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
                return

    async def receive(self) -> SessionMessage:
        """The next message, in the order of arrival.

        Raises:
            anyio.EndOfStream: the stream was closed.
        """
        await self._wait_for_item()
        item, memory = self._items.pop(0)
        if memory is not None:
            memory.release()
        return item

    async def peek(self) -> SessionMessage:
        """The next message, without taking it. Raises what `receive` raises."""
        await self._wait_for_item()
        return self._items[0][0]

    def close(self) -> None:
        """Close the stream and drop what is left in it."""
        self._is_closed = True
        self._clear()
        self._wake()

    def _clear(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                _, memory = self._items.pop(0)
                if memory is not None:
                    memory.release()


class Link:
    """The way of one session's messages into its message loop, and the record of what is in flight.

    Threads: `admit` is called on the host's loop, everything else in the lane. Requests in flight are added on the
    host's loop and removed in the lane; each of these steps is one operation of a dictionary, so no lock is needed.
    """

    def __init__(
        self,
        session: Session[Any],
        lane: Lane,
        max_backlog: int,
        wait_for_room: Callable[[], Awaitable[None]] | None = None,
        must_wait: Callable[[], bool] = lambda: False,
    ) -> None:
        """`wait_for_room` waits, in the lane, until the client has read enough of what was sent to it.

        `must_wait` tells whether it would wait. Until then the session takes no further message. Without this, all
        answers to a client that posts and does not read would be held in memory: 240 MiB for 64 MiB of answers.
        """
        self.session = session
        self._max_backlog = max_backlog
        self.inbound = Inbound(lane, wait_for_room, must_wait)
        self.is_initialized = False
        """Whether the server has accepted `initialize`. Set in the lane, read on any thread."""
        self._conversation: Conversation | None = None
        self._is_closed = False
        self._initialize_key: RequestId | None = None
        self._own_requests: dict[RequestId, asyncio.Future[bool]] = {}
        """Requests of the host itself that are in flight. Filled on the host's loop, emptied in the lane."""
        self._count_in = metrics.message_counter(session.server_name, "in")
        self._count_out = metrics.message_counter(session.server_name, "out")

    def admit(
        self,
        message: JSONRPCMessage,
        scope: Scope,
        memory: MessageMemory,
        metadata: ServerMessageMetadata | None = None,
        on_admitted: Callable[[], None] | None = None,
    ) -> None:
        """Hand `message` to the server, and hold `memory` until it is answered.

        `scope` is the request as the server's handlers may see it. `metadata` carries what the transport offers to the
        handler. `on_admitted` is called when nothing can be refused any more, before the server can see the message.

        Raises:
            DuplicateRequestId: a request with this id is in flight, so the two answers could not be told apart.
            RepeatedInitialize: `initialize` was sent before on this session.
            SessionBacklogFull: too many messages of this session are waiting or running.
            TooManyRequests, MessageBudgetFull: the memory that is left is for answers, and this is a request.
        """
        session = self.session
        is_request = isinstance(message, JSONRPCRequest)
        # Requests and other messages have separate bounds: a session whose calls all wait for an answer from the client
        # must be able to take that answer.
        backlog = session.in_flight if is_request else self.inbound
        if len(backlog) >= self._max_backlog:
            raise SessionBacklogFull("Too many messages of this session are waiting. Read the answers first.")
        metadata = metadata or ServerMessageMetadata()
        metadata.request_context = Request(scope)
        if isinstance(message, JSONRPCRequest):
            if memory.refusal is not None:
                raise memory.refusal
            self._admit_request(message, memory, metadata)
        else:
            memory.keep()
            if isinstance(message, JSONRPCNotification) and message.method == INITIALIZED:
                self._note_initialized()
        if on_admitted is not None:
            on_admitted()
        session.note_incoming()
        self._count_in.inc()
        self.inbound.put(SessionMessage(message, metadata), None if is_request else memory)
        # Look after the request was added: `close`, on the other thread, looks after it has closed the link.
        if self._is_closed:
            self._settle_all()

    def _admit_request(self, message: JSONRPCRequest, memory: MessageMemory, metadata: ServerMessageMetadata) -> None:
        session, key = self.session, request_key(message.id)
        if key in session.in_flight:
            raise DuplicateRequestId(
                "A request with this id is still in flight on this session.", INVALID_REQUEST, message.id
            )
        if message.method == INITIALIZE:
            # Spec 2025-11-25 basic/lifecycle#initialization: it is the first interaction, so it happens once.
            if self._initialize_key is not None:
                raise RepeatedInitialize("This session is initialized already.", INVALID_REQUEST, message.id)
            self._initialize_key = key
            self._note_client(message)
        elif message.method == "tools/call":
            session.calls += 1
        elif message.method in STATE_METHODS and session.state is not None:
            session.state.note_request(key, message)
        memory.keep()
        session.in_flight[key] = memory
        end_on_wire = metadata.on_request_unanswered

        async def settle() -> None:  # a request that the client cancelled is never answered
            self._settle(key)
            if end_on_wire is not None:
                await end_on_wire()

        metadata.on_request_unanswered = settle

    def ask(self, message: JSONRPCRequest, scope: Scope, memory: MessageMemory) -> "asyncio.Future[bool]":
        """Send a request of the host itself, whose answer no client sees. The result tells whether it was accepted.

        Raises what `admit` raises.
        """
        accepted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        key = request_key(message.id)
        self._own_requests[key] = accepted
        try:
            self.admit(message, scope, memory)
        except BaseException:
            del self._own_requests[key]
            raise
        if self._is_closed:
            self._refuse_own_requests()
        return accepted

    async def opens_with_handshake(self) -> bool:
        """Wait for the session's first message. Returns whether it is `initialize`."""
        try:
            opening = (await self.inbound.peek()).message
        except anyio.EndOfStream:
            return False
        return isinstance(opening, JSONRPCRequest) and opening.method == INITIALIZE

    def conversation(self) -> Conversation:
        """What is noted of the calls of this session. Called in the lane."""
        if self._conversation is None:
            session = self.session
            found = Conversation(
                session.transport,
                session.protocol_version,
                session.client_name[:MAX_NAME_LENGTH],
                session.client_version[:MAX_NAME_LENGTH],
                session.row_id,
            )
            if not self.is_initialized:  # the client may not have said who it is
                return found
            self._conversation = found
        return self._conversation

    def weigh(self, data: bytes) -> MessageMemory | None:
        """Count a message that is no answer, if it is large. Call it before it is sent.

        Returns the memory that it holds: keep it until it has been sent, and release it here.

        Raises:
            MCPError: the client would hold too much.
        """
        session = self.session
        if len(data) <= SMALL_OUTGOING_BYTES or session.budget is None:
            return None
        memory = session.budget.hold_outgoing(session.identity, session.address, len(data))
        if memory is None:
            metrics.withheld_messages.labels(session.server_name).inc()
            raise MCPError(code=INTERNAL_ERROR, message=WITHHELD)
        return memory

    def withhold(self, request_id: RequestId, result: dict[str, Any]) -> bytes | None:
        """The error to send in place of a result that `weigh_answer` would withhold, if that shows already."""
        memory = self.session.in_flight.get(request_key(request_id))
        if memory is None or memory.has_room_for(result):
            return None
        metrics.withheld_messages.labels(self.session.server_name).inc()
        return error_body(INTERNAL_ERROR, WITHHELD, request_id)

    def weigh_again(self, size_bytes: int) -> MessageMemory | None:
        """Count events that are sent once more, if they are large. Returns what `weigh` returns.

        Raises:
            TooManyRequests: the client would hold too much.
        """
        session = self.session
        if size_bytes <= SMALL_OUTGOING_BYTES or session.budget is None:
            return None
        memory = session.budget.hold_outgoing(session.identity, session.address, size_bytes)
        if memory is None:
            raise TooManyRequests(WITHHELD, RETRY_SECONDS)
        return memory

    def weigh_answer(self, request_id: RequestId, data: bytes) -> tuple[bytes, MessageMemory | None]:
        """Count an answer, if it is large. Call it before `settle`.

        Returns what to send, which is an error if the client would hold too much, and the memory as `weigh` does.
        """
        if len(data) <= SMALL_OUTGOING_BYTES:
            return data, None
        memory = self.session.in_flight.get(request_key(request_id))
        if memory is None:
            return data, None
        if memory.add_outgoing(len(data)):
            memory.keep()
            return data, memory
        metrics.withheld_messages.labels(self.session.server_name).inc()
        return error_body(INTERNAL_ERROR, WITHHELD, request_id), None

    def note_sent(self) -> None:
        """Count a message to the client. Call it before the message is sent."""
        self.session.note_outgoing()
        self._count_out.inc()

    def settle(self, request_id: RequestId, result: dict[str, Any] | None, size_bytes: int) -> bool:
        """Count an answer to the client, and settle its request. Call it before the answer is sent.

        `result` is None for an error. `size_bytes`: how long the answer is, for what is noted of a call. Returns
        whether the client asked, and not the host itself: then the answer is to be sent.
        """
        self.note_sent()
        note_answer_size(size_bytes)
        key, session, is_accepted = request_key(request_id), self.session, result is not None
        state = session.state
        self._settle(key)
        if result is not None:
            session.is_established = True
            if key == self._initialize_key:
                self.is_initialized = True
                # The version the server chose, which may differ from the one the client proposed.
                session.protocol_version = str(result.get("protocolVersion", ""))[:MAX_FACT_LENGTH]
                self._announce_state()
        if state is not None and state.has_unanswered and state.note_answer(key, is_accepted=is_accepted):
            self._announce_state()
        accepted = self._own_requests.pop(key, None) if self._own_requests else None
        if accepted is None:
            return True
        _resolve(accepted, is_accepted)
        return False

    def close(self) -> None:
        """Drop what is left: the message loop has ended, so nothing will be answered any more."""
        self._is_closed = True
        self.inbound.close()
        self._settle_all()
        self._refuse_own_requests()

    def _refuse_own_requests(self) -> None:
        with contextlib.suppress(KeyError):
            while True:
                _resolve(self._own_requests.popitem()[1], False)

    def _settle(self, key: RequestId) -> None:
        memory = self.session.in_flight.pop(key, None)
        if memory is not None:
            memory.release()

    def _settle_all(self) -> None:
        with contextlib.suppress(KeyError):
            while True:
                _, memory = self.session.in_flight.popitem()
                memory.release()

    def _note_client(self, message: JSONRPCRequest) -> None:
        params = message.params or {}
        if self.session.state is not None:
            self.session.state.note_initialize(params)
        client = params.get("clientInfo")
        client = client if isinstance(client, dict) else {}
        self.session.note_client(client.get("name"), client.get("version"), params.get("protocolVersion"))

    def _note_initialized(self) -> None:
        state = self.session.state
        if state is not None and not state.is_initialized:
            state.is_initialized = True
            if self.is_initialized:
                self._announce_state()

    def _announce_state(self) -> None:
        if self.session.state is not None:
            signals.session_state_changed.send_robust(Link, session=self.session)


def _resolve(accepted: "asyncio.Future[bool]", is_accepted: bool) -> None:
    """Set the result of a future of the host's loop. Any thread."""

    def set_result() -> None:
        if not accepted.done():
            accepted.set_result(is_accepted)

    with contextlib.suppress(RuntimeError):  # the host's loop is closed
        accepted.get_loop().call_soon_threadsafe(set_result)
