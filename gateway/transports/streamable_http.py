"""Streamable HTTP of the handshake era (2025-03-26 to 2025-11-25): sessions with an `Mcp-Session-Id`.

Lives here: one session, and which of its streams a message belongs to. Not here: HTTP (`endpoints`), running the server
(`message_loop`), the stateless protocol (`stateless`).

Spec: 2025-11-25 basic/transports#streamable-http. Where this differs from the SDK's `StreamableHTTPServerTransport`
(mcp 2.3):

1. a call is answered with JSON unless something has to be streamed before its result (`reply`);
2. a request whose id is in flight and a second `initialize` are refused at once; the SDK would hang the first caller;
3. what belongs to the standalone stream while it is not connected is kept, within bounds, until it is;
4. resumption is on for every session, within bounds, and an event id that cannot be resumed from gets 404;
5. the lifespan is the instance's, and the instance's initialization options are used.
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
from gateway.transports.message_loop import MessageLoop
from gateway.transports.reply import Answer, Reply
from gateway.transports.sessions import Session

REQUEST_CANCELLED: Final = -32800
"""JSON-RPC code that ends the HTTP answer of a request which the client cancelled (LSP's RequestCancelled)."""

CONNECTION_CLOSED: Final = -32000
"""JSON-RPC code for calls that were in flight when their session ended."""

STOP_SECONDS: Final = 1.0
"""How long the lane has to write the last event to the streams of a session that was ended."""

RETRY_MILLISECONDS: Final = 500
"""What a client is told to wait before it resumes a stream that was closed on purpose."""

RESUMABLE_SINCE: Final = "2025-11-25"
"""Older clients cannot read the empty event that opens a resumable stream (SDK: `_mint_priming_event`)."""


class _Channel:
    """One stream of a session as the server sees it, whether or not a client is reading it. Used in the lane."""

    def __init__(self, number: int, buffer: EventBuffer) -> None:
        self.number = number
        self._buffer = buffer
        self.stream: EventStream | None = None
        self._sent_through = 0
        """The sequence of the last event that was written to a connected stream."""

    def send(self, data: bytes) -> None:
        """Write one event, or keep it until a client connects."""
        event_id = self._buffer.append(self.number, data)
        if self.stream is not None and not self.stream.is_closed:
            self._sent_through = self._buffer.last_sequence
            self.stream.write(frame(b"message", data, event_id))

    def attach(self, stream: EventStream, replay: list[tuple[bytes, bytes]] | None = None) -> None:
        """Connect `stream`, and first write to it what its client has missed."""
        for event_id, data in self._buffer.later_than(self.number, self._sent_through) if replay is None else replay:
            stream.write(frame(b"message", data, event_id))
        self._sent_through = self._buffer.last_sequence
        self.stream = stream

    def prime(self) -> None:
        """Open the stream with an event that has an id and no data, so that its client can resume from the start."""
        if self.stream is not None:
            event_id = self._buffer.append(self.number, b"")
            self.stream.write(b"id: %b\r\nretry: %d\r\ndata: \r\n\r\n" % (event_id, RETRY_MILLISECONDS))

    async def wait_for_room(self) -> None:
        if self.stream is not None and self.stream.must_wait:
            await self.stream.wait_for_room()


class _Call(_Channel):
    """One request in flight: the reply to it, and the stream that this may become."""

    def __init__(
        self, number: int, buffer: EventBuffer, request_id: RequestId, reply: Reply, *, is_resumable: bool
    ) -> None:
        super().__init__(number, buffer)
        self.request_id = request_id
        self._reply = reply
        self._is_resumable = is_resumable

    def open_stream(self) -> None:
        """Make the answer a stream, if it is still open how it goes."""
        if self.stream is None:
            self.attach(self._reply.stream)
            self._reply.open_stream()
            if self._is_resumable:
                self.prime()

    def send(self, data: bytes) -> None:
        self.open_stream()
        super().send(data)

    def finish(self, data: bytes) -> None:
        """Send the result; the last event of the stream if there is one, a JSON body otherwise."""
        if self.stream is not None or not self._reply.answer(Answer(data)):
            self.send(data)
            assert self.stream is not None
            self.stream.close()

    def answer_at_once(self, data: bytes) -> bool:
        """Answer with JSON from any thread; False if the answer has become a stream."""
        return self._reply.answer(Answer(data))

    def close_streams(self) -> None:
        """End what carries the answer, from any thread."""
        self._reply.stream.close()
        if self.stream is not None:
            self.stream.close()


def _ended_body(call: _Call) -> bytes:
    return error_body(CONNECTION_CLOSED, "The session ended before the request completed.", call.request_id)


def _close_streams(calls: Iterable[_Call]) -> None:
    for call in calls:
        call.close_streams()


class StreamableHttpTransport:
    """One handshake-era session. Made, started and stopped on the host's loop; its message loop runs in the lane."""

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
        self._standalone = _Channel(STANDALONE, self._buffer)
        self._calls: dict[RequestId, _Call] = {}
        self._channels: dict[int, _Channel] = {STANDALONE: self._standalone}
        self._last_number = STANDALONE
        self._loop = MessageLoop(
            running,
            self._link,
            self._send,
            on_end=self._ended,
            takes_stateless=False,
            can_ask=self._has_standalone_stream,
        )
        self._on_end: Callable[[], object] = lambda: None

    def start(self, on_end: Callable[[], object]) -> None:
        """Start the message loop. `on_end` is called in the lane when it ends, by itself or not; maybe twice."""
        self._on_end = on_end
        self._loop.start()

    def stop(self) -> None:
        """End the message loop, cancel its handlers and answer what is open."""
        self._loop.stop()
        # What needs no lane is done here: it may be blocked for long.
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
        """Whether all that was said on the standalone stream has been handed to the ASGI server.

        The streams of answered calls end by themselves, with or without the session.
        """
        stream = self._standalone.stream
        return stream is None or stream.is_closed or stream.is_flushed

    def deliver(self, message: JSONRPCMessage, scope: Scope) -> None:
        """Hand over a notification or a response. Raises what `Link.admit` raises."""
        self._link.admit(message, scope)

    def call(self, message: JSONRPCRequest, scope: Scope, reply: Reply) -> None:
        """Hand over a request whose answer goes to `reply`. Raises what `Link.admit` raises."""
        self._last_number += 1
        version = self._session.protocol_version
        call = _Call(
            self._last_number,
            self._buffer,
            message.id,
            reply,
            is_resumable=message.method != INITIALIZE and is_version_at_least(version, RESUMABLE_SINCE),
        )
        # What is lost of a call that is silent for long, its client must be able to resume too.
        reply.on_silence = lambda: self._lane.post(call.open_stream)
        key = request_key(message.id)

        def register() -> None:
            self._calls[key] = call
            self._channels[call.number] = call

        self._link.admit(message, scope, metadata=self._metadata(key, call), on_admitted=register)

    def announce(self) -> None:
        """Tell the client that the server's lists may have changed, on the standalone stream."""
        self._lane.post(self._announce_in_lane)

    def _announce_in_lane(self) -> None:
        for message in list_changed_messages():
            self._link.note_answer(message)
            self._standalone.send(message.model_dump_json(exclude_unset=True).encode())

    async def attach_standalone(self, stream: EventStream) -> bool:
        """Connect the standalone stream; False if there is one already."""
        return await self._lane.run(self._attach_standalone(stream))

    async def resume(self, stream: EventStream, last_event_id: str) -> bool:
        """Connect `stream` where another was lost; False if that is unknown or too long ago."""
        return await self._lane.run(self._resume(stream, last_event_id))

    # -- In the lane -------------------------------------------------------------------------------------------------

    def _metadata(self, key: RequestId, call: _Call) -> ServerMessageMetadata:
        async def close_sse_stream() -> None:
            call.open_stream()
            if call.stream is not None:
                call.stream.close()

        async def close_standalone_sse_stream() -> None:
            if self._standalone.stream is not None:
                self._standalone.stream.close()

        async def end_unanswered() -> None:
            # This era's wire ends a request's stream only with a response.
            self._finish(key, error_body(REQUEST_CANCELLED, "Request cancelled", call.request_id))

        metadata = ServerMessageMetadata(on_request_unanswered=end_unanswered)
        if is_version_at_least(self._session.protocol_version, RESUMABLE_SINCE):
            metadata.close_sse_stream = close_sse_stream
            metadata.close_standalone_sse_stream = close_standalone_sse_stream
        return metadata

    def _has_standalone_stream(self) -> bool:
        stream = self._standalone.stream
        return stream is not None and not stream.is_closed

    async def _attach_standalone(self, stream: EventStream) -> bool:
        current = self._standalone.stream
        if current is not None and not current.is_closed:
            return False
        self._standalone.attach(stream)
        if is_version_at_least(self._session.protocol_version, RESUMABLE_SINCE):
            self._standalone.prime()
        return True

    async def _resume(self, stream: EventStream, last_event_id: str) -> bool:
        found = self._buffer.after(last_event_id)
        if found is None:
            return False
        number, missed = found
        channel = self._channels.get(number)
        if channel is None:  # the call has been answered: what is left of it is all there will be
            for event_id, data in missed:
                stream.write(frame(b"message", data, event_id))
            stream.close()
            return True
        if channel.stream is not None:
            channel.stream.close()
        channel.attach(stream, missed)
        return True

    def _finish(self, key: RequestId, data: bytes) -> None:
        call = self._calls.pop(key, None)
        if call is not None:
            call.finish(data)
            self._buffer.end(call.number)
            del self._channels[call.number]

    def _ended(self) -> None:
        for key, call in list(self._calls.items()):
            self._finish(key, _ended_body(call))
        if self._standalone.stream is not None:
            self._standalone.stream.close()
        self._on_end()

    async def _send(self, item: SessionMessage) -> None:
        message = item.message
        data = message_body(message)
        self._link.note_answer(message)
        if isinstance(message, JSONRPCResponse | JSONRPCError) and message.id is not None:
            self._finish(request_key(message.id), data)
            return
        channel: _Channel = self._standalone
        if isinstance(item.metadata, ServerMessageMetadata) and item.metadata.related_request_id is not None:
            channel = self._calls.get(request_key(item.metadata.related_request_id), self._standalone)
        channel.send(data)
        try:
            await channel.wait_for_room()
        except StreamClosed:
            # The client may come back for the rest: what it misses is kept.
            return
