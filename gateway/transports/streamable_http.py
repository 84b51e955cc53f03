"""Streamable HTTP of the handshake era (2025-03-26 to 2025-11-25): sessions with an `Mcp-Session-Id`.

Lives here: one session, and which of its streams a message belongs to. Not here: HTTP (`endpoints.streamable_http`),
running the server (`message_loop`), the stateless protocol (`stateless`).

Spec: 2025-11-25 basic/transports#streamable-http. Differences from the SDK's `StreamableHTTPServerTransport` (mcp 2.3):

1. A request is answered with JSON unless something must be streamed before its result (`reply`).
2. A request whose id is in flight and a second `initialize` are refused at once. The SDK lets the first caller hang.
3. Messages for the standalone stream are kept, within bounds, while no client has it open.
4. Every session can be resumed, within bounds. An event id that cannot be resumed from is answered 404.
5. The lifespan belongs to the instance, whose initialization options are used.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp_types import JSONRPCError, JSONRPCRequest, JSONRPCResponse, RequestId
from mcp_types.version import is_version_at_least

from gateway.exceptions import StreamClosed
from gateway.http.asgi import Scope
from gateway.instances.running_server import RunningServer
from gateway.jsonrpc import INITIALIZE, JSONRPCMessage, error_body, message_body, request_key
from gateway.transports.announcements import list_changed_messages
from gateway.transports.event_buffer import STANDALONE, EventBuffer
from gateway.transports.event_stream import EventStream, frame
from gateway.transports.link import Link
from gateway.transports.message_budget import MessageMemory
from gateway.transports.message_loop import MessageLoop
from gateway.transports.reply import Answer, Reply
from gateway.transports.sessions import Session

REQUEST_CANCELLED: Final = -32800
"""JSON-RPC code that answers a request which its client cancelled (LSP's RequestCancelled)."""

CONNECTION_CLOSED: Final = -32000
"""JSON-RPC code that answers requests which were in flight when their session ended."""

STOP_SECONDS: Final = 1.0
"""How long the lane may take to write the last events of a session that was ended."""

RETRY_MILLISECONDS: Final = 500
"""How long a client should wait before it resumes a stream that was closed on purpose."""

RESUMABLE_SINCE: Final = "2025-11-25"
"""Older clients cannot read the empty event that opens a resumable stream (SDK: `_mint_priming_event`)."""


class _ResumableStream:
    """One stream of a session as the server sees it, whether or not a client has it open. Used in the lane."""

    def __init__(self, number: int, buffer: EventBuffer, note_sent: Callable[[int], None]) -> None:
        """`note_sent` tells the buffer, from the host's loop, that an event has been sent."""
        self.number = number
        self._buffer = buffer
        self._note_sent = note_sent
        self.stream: EventStream | None = None
        """The response that carries it now, or carried it last."""
        self._sent_through = 0
        """The sequence of the last event that was written to a response."""

    def send(self, data: bytes) -> None:
        """Send one event, or keep it until a client opens the stream."""
        event_id = self._buffer.append(self.number, data)
        if self.stream is not None and not self.stream.is_closed:
            self._sent_through = self._buffer.last_sequence
            self.stream.write(frame(b"message", data, event_id), self._on_sent)

    @property
    def _on_sent(self) -> Callable[[], None] | None:
        """What an event must call when it has been sent: one that is too large is then no longer kept."""
        if not self._buffer.is_too_large:
            return None
        sequence = self._buffer.last_sequence
        return lambda: self._note_sent(sequence)

    def attach(self, stream: EventStream, missed: list[tuple[bytes, bytes]] | None = None) -> None:
        """Continue on `stream`, and first write the events that its client has missed."""
        for event_id, data in self._buffer.later_than(self.number, self._sent_through) if missed is None else missed:
            stream.write(frame(b"message", data, event_id), self._on_sent)
        self._sent_through = self._buffer.last_sequence
        self.stream = stream

    def prime(self) -> None:
        """Start the stream with an event that has an id and no data, so that the client can resume from the start."""
        if self.stream is not None:
            event_id = self._buffer.append(self.number, b"")
            self.stream.write(b"id: %b\r\nretry: %d\r\ndata: \r\n\r\n" % (event_id, RETRY_MILLISECONDS))

    async def wait_for_room(self) -> None:
        """Wait until the client has read enough. Raises what `EventStream.wait_for_room` raises."""
        if self.stream is not None and self.stream.must_wait:
            await self.stream.wait_for_room()


class _Call(_ResumableStream):
    """One request in flight: the reply to it, and the stream that the reply may become."""

    def __init__(
        self,
        number: int,
        buffer: EventBuffer,
        note_sent: Callable[[int], None],
        request_id: RequestId,
        reply: Reply,
        *,
        is_resumable: bool,
    ) -> None:
        super().__init__(number, buffer, note_sent)
        self.request_id = request_id
        self._reply = reply
        self._is_resumable = is_resumable

    def open_stream(self) -> None:
        """Answer with a stream, unless the reply is decided already."""
        if self.stream is None:
            self.attach(self._reply.stream)
            self._reply.open_stream()
            if self._is_resumable:
                self.prime()

    def send(self, data: bytes) -> None:
        self.open_stream()
        super().send(data)

    def finish(self, data: bytes) -> None:
        """Send the result: as JSON, or as the last event if the reply is a stream."""
        if self.stream is not None or not self._reply.answer(Answer(data)):
            self.send(data)
            assert self.stream is not None
            self.stream.close()

    # -- On any thread -----------------------------------------------------------------------------------------------

    def answer_at_once(self, data: bytes) -> bool:
        """Answer with JSON. False if the reply is a stream already."""
        return self._reply.answer(Answer(data))

    def close_streams(self) -> None:
        """End the responses that carry the answer."""
        self._reply.stream.close()
        if self.stream is not None:
            self.stream.close()


def _ended_body(call: _Call) -> bytes:
    return error_body(CONNECTION_CLOSED, "The session ended before the request completed.", call.request_id)


def _close_streams(calls: Iterable[_Call]) -> None:
    for call in calls:
        call.close_streams()


class StreamableHttpTransport:
    """The wire of one handshake-era session.

    Threads: the public methods are called on the host's loop. What is below "In the lane" runs there. `_calls` and
    `_streams` are filled on the host's loop, before the lane can see the request, and emptied in the lane; each step is
    one operation of a dictionary, so no lock is needed.
    """

    def __init__(
        self,
        running: RunningServer,
        session: Session[Any],
        *,
        max_backlog: int,
        max_events: int,
        max_event_bytes: int,
    ) -> None:
        self._lane = running.lane
        self._session = session
        self._link = Link(session, running.lane, max_backlog)
        self._buffer = EventBuffer(max_events, max_event_bytes)
        self._standalone = _ResumableStream(STANDALONE, self._buffer, self._note_sent)
        self._calls: dict[RequestId, _Call] = {}
        self._streams: dict[int, _ResumableStream] = {STANDALONE: self._standalone}
        self._last_number = STANDALONE
        self._loop = MessageLoop(
            running,
            self._link,
            self._write,
            on_end=self._end_in_lane,
            takes_stateless=False,
            can_ask=self._has_standalone_stream,
        )
        self._on_end: Callable[[], object] = lambda: None

    def start(self, on_end: Callable[[], object]) -> None:
        """Start the message loop. `on_end` is called in the lane when it ends, for whatever reason; maybe twice."""
        self._on_end = on_end
        self._loop.start()

    def stop(self) -> None:
        """Cancel what runs for the session, answer what is open and end the streams."""
        self._loop.stop()
        # What needs no lane is done here: the lane may be blocked for long.
        if self._standalone.stream is not None:
            self._standalone.stream.cut()
        calls = list(self._calls.values())
        streamed = [call for call in calls if not call.answer_at_once(_ended_body(call))]
        if streamed:
            asyncio.get_running_loop().call_later(STOP_SECONDS, _close_streams, streamed)

    @property
    def is_established(self) -> bool:
        """Whether the server has accepted `initialize`."""
        return self._link.is_initialized

    @property
    def is_flushed(self) -> bool:
        """Whether everything on the standalone stream has been handed to the ASGI server.

        The streams of answered requests end by themselves, with or without the session.
        """
        stream = self._standalone.stream
        return stream is None or stream.is_closed or stream.is_flushed

    def deliver(self, message: JSONRPCMessage, scope: Scope, memory: MessageMemory) -> None:
        """Hand a notification or a response to the server. Raises what `Link.admit` raises."""
        self._link.admit(message, scope, memory)

    def call(self, message: JSONRPCRequest, scope: Scope, memory: MessageMemory, reply: Reply) -> None:
        """Hand a request to the server; the answer goes to `reply`. Raises what `Link.admit` raises."""
        self._last_number += 1
        call = _Call(
            self._last_number,
            self._buffer,
            self._note_sent,
            message.id,
            reply,
            is_resumable=message.method != INITIALIZE and self._is_resumable,
        )
        # A client must be able to resume the stream of a request that is silent for long, too.
        reply.on_silence = lambda: self._lane.post(call.open_stream)
        key = request_key(message.id)

        def register() -> None:
            self._calls[key] = call
            self._streams[call.number] = call

        self._link.admit(message, scope, memory, self._metadata(key, call), register)

    def _metadata(self, key: RequestId, call: _Call) -> ServerMessageMetadata:
        """What the handler of a request may ask of this transport. The functions in it are called in the lane."""

        async def close_sse_stream() -> None:
            call.open_stream()
            if call.stream is not None:
                call.stream.close()

        async def close_standalone_sse_stream() -> None:
            if self._standalone.stream is not None:
                self._standalone.stream.close()

        async def end_unanswered() -> None:
            # In this era only a response ends the stream of a request.
            self._finish(key, error_body(REQUEST_CANCELLED, "Request cancelled", call.request_id))

        metadata = ServerMessageMetadata(on_request_unanswered=end_unanswered)
        if self._is_resumable:
            metadata.close_sse_stream = close_sse_stream
            metadata.close_standalone_sse_stream = close_standalone_sse_stream
        return metadata

    @property
    def _is_resumable(self) -> bool:
        return is_version_at_least(self._session.protocol_version, RESUMABLE_SINCE)

    def announce(self) -> None:
        """Tell the client on the standalone stream that the server's lists may have changed."""
        self._lane.post(self._announce_in_lane)

    async def attach_standalone(self, stream: EventStream) -> bool:
        """Make `stream` the standalone stream. False if the session has one already."""
        return await self._lane.run(self._attach_standalone(stream))

    async def resume(self, stream: EventStream, last_event_id: str) -> bool:
        """Continue on `stream` after this event. False if the id is unknown or too old."""
        return await self._lane.run(self._resume(stream, last_event_id))

    def _note_sent(self, sequence: int) -> None:
        self._lane.post(self._buffer.note_sent, sequence)

    # -- In the lane -------------------------------------------------------------------------------------------------

    def _has_standalone_stream(self) -> bool:
        stream = self._standalone.stream
        return stream is not None and not stream.is_closed

    def _announce_in_lane(self) -> None:
        for message in list_changed_messages():
            self._link.note_sent(message)
            self._standalone.send(message.model_dump_json(exclude_unset=True).encode())

    async def _attach_standalone(self, stream: EventStream) -> bool:
        current = self._standalone.stream
        if current is not None and not current.is_closed:
            return False
        self._standalone.attach(stream)
        if self._is_resumable:
            self._standalone.prime()
        return True

    async def _resume(self, stream: EventStream, last_event_id: str) -> bool:
        found = self._buffer.after(last_event_id)
        if found is None:
            return False
        number, missed = found
        resumed = self._streams.get(number)
        if resumed is None:  # the request has been answered: these events are the rest of its stream
            resumed = _ResumableStream(number, self._buffer, self._note_sent)
            resumed.attach(stream, missed)
            stream.close()
            return True
        if resumed.stream is not None:
            resumed.stream.close()
        resumed.attach(stream, missed)
        return True

    def _finish(self, key: RequestId, data: bytes) -> None:
        call = self._calls.pop(key, None)
        if call is not None:
            call.finish(data)
            self._buffer.end(call.number)
            del self._streams[call.number]

    def _end_in_lane(self) -> None:
        for key, call in list(self._calls.items()):
            self._finish(key, _ended_body(call))
        if self._standalone.stream is not None:
            self._standalone.stream.close()
        self._on_end()

    async def _write(self, item: SessionMessage) -> None:
        message = item.message
        data = message_body(message)
        self._link.note_sent(message)
        if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
            self._finish(request_key(message.id), data)
            return
        target: _ResumableStream = self._standalone
        if isinstance(item.metadata, ServerMessageMetadata) and item.metadata.related_request_id is not None:
            target = self._calls.get(request_key(item.metadata.related_request_id), self._standalone)
        target.send(data)
        try:
            await target.wait_for_room()
        except StreamClosed:
            # The client may come back: what it has missed is kept.
            return
