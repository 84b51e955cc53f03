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
import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp_types import JSONRPCRequest, JSONRPCResponse, RequestId
from mcp_types.version import is_version_at_least

from gateway.exceptions import GatewayError, StreamClosed
from gateway.http.asgi import Scope
from gateway.http.refusals import count_refusal
from gateway.instances.running_server import RunningServer
from gateway.jsonrpc import ANSWERS, INITIALIZE, Batch, JSONRPCMessage, error_body, message_body, request_key
from gateway.transports.announcements import list_changed_messages
from gateway.transports.event_buffer import STANDALONE, EventBuffer
from gateway.transports.event_stream import EventStream, frame
from gateway.transports.link import Link
from gateway.transports.message_budget import NOTHING_HELD, MessageMemory
from gateway.transports.message_loop import MessageLoop
from gateway.transports.reply import Answer, Reply
from gateway.transports.sessions import Session
from gateway.transports.shared_events import EventsUnavailable, SharedEvents, SharedStream

REQUEST_CANCELLED: Final = -32800
"""JSON-RPC code that answers a request which its client cancelled (LSP's RequestCancelled)."""

CONNECTION_CLOSED: Final = -32000
"""JSON-RPC code that answers requests which were in flight when their session ended."""

STOP_SECONDS: Final = 1.0
"""How long the lane may take to write the last events of a session that was ended."""

RETRY_MILLISECONDS: Final = 500
"""How long a client should wait before it resumes a stream that was closed on purpose."""

EVENTS_OF_AN_EPOCH: Final = 10**9
"""More events than a session can have in one process: event ids of a session that was restored are never equal."""

FOLLOW_SECONDS: Final = 0.25
"""How often it looks for what another process adds to a stream that a client has resumed here."""

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

    def send(self, data: bytes, memory: MessageMemory | None = None) -> None:
        """Send one event, or keep it until a client opens the stream. `memory`: what it holds, if it is large."""
        event_id = self._buffer.append(self.number, data, memory)
        if self.stream is not None and not self.stream.is_closed:
            self._sent_through = self._buffer.last_sequence
            self.stream.write(frame(b"message", data, event_id), self._on_sent, memory)

    @property
    def _on_sent(self) -> Callable[[], None] | None:
        """What an event must call when it has been sent: one that is too large is then no longer kept."""
        if not self._buffer.is_too_large:
            return None
        sequence = self._buffer.last_sequence
        return lambda: self._note_sent(sequence)

    def attach(self, stream: EventStream) -> None:
        """Continue on `stream`, and first write the events that were kept for it."""
        # Where the newest event holds memory, it is the only one that is kept.
        self.replay(stream, self._buffer.later_than(self.number, self._sent_through), self._buffer.memory)

    def replay(self, stream: EventStream, missed: list[tuple[bytes, bytes]], memory: MessageMemory | None) -> None:
        """Continue on `stream`, and first write the events that its client has missed. `memory`: what these hold."""
        for event_id, data in missed:
            stream.write(frame(b"message", data, event_id), self._on_sent, memory)
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


class _Post(_ResumableStream):
    """One POST with requests in flight: its reply, and the stream that the reply may become.

    It has one request, or several if it is a batch.
    """

    def __init__(
        self,
        number: int,
        buffer: EventBuffer,
        note_sent: Callable[[int], None],
        reply: Reply,
        *,
        is_batch: bool,
        is_resumable: bool,
    ) -> None:
        super().__init__(number, buffer, note_sent)
        self._reply = reply
        self._is_batch = is_batch
        self._is_resumable = is_resumable
        self._unanswered: dict[RequestId, RequestId] = {}
        """Requests in flight: their key -> their id. Filled on the host's loop, before the lane can see the request."""
        self._answers: list[bytes] = []
        """Answers that wait for the others of a batch, while the reply is undecided."""
        self._is_whole = not is_batch
        """Whether all messages of the POST have been handed to the server."""

    def expect(self, request_id: RequestId) -> None:
        """Note that a request of this POST is to be answered."""
        self._unanswered[request_key(request_id)] = request_id

    def open_stream(self) -> None:
        """Answer with a stream, unless the reply is decided already."""
        if self.stream is None:
            self.attach(self._reply.stream)
            self._reply.open_stream()
            self._buffer.open(self.number, self._unanswered.values())
            if self._is_resumable:
                self.prime()
            for answer in self._answers:
                super().send(answer)
            self._answers.clear()

    def send(self, data: bytes, memory: MessageMemory | None = None) -> None:
        self.open_stream()
        super().send(data, memory)

    def answer(self, key: RequestId, data: bytes, memory: MessageMemory | None = None) -> bool:
        """Answer one request. Returns whether the reply is complete."""
        del self._unanswered[key]
        self._add(data, memory)
        return self._complete()

    def finish_batch(self, refusals: list[bytes]) -> bool:
        """Add the errors that answer refused messages; there are no more messages. Returns what `answer` returns."""
        for refusal in refusals:
            self._add(refusal)
        self._is_whole = True
        return self._complete()

    def _add(self, data: bytes, memory: MessageMemory | None = None) -> None:
        if self.stream is None:
            # Its memory is that of the POST, which is held until the response has been sent.
            self._answers.append(data)
        else:
            super().send(data, memory)

    def _complete(self) -> bool:
        if self._unanswered or not self._is_whole:
            return False
        # As JSON if that is still possible; otherwise the answers are the last events of the stream.
        if self.stream is None and not self._reply.answer(Answer(self._body(self._answers))):
            self.open_stream()
        if self.stream is not None:
            self.stream.close()
        return True

    def _body(self, answers: list[bytes]) -> bytes:
        return b"[%b]" % b",".join(answers) if self._is_batch else answers[0]

    # -- On any thread -----------------------------------------------------------------------------------------------

    @property
    def keys(self) -> list[RequestId]:
        """The keys of the requests in flight."""
        return list(self._unanswered)

    def request_id(self, key: RequestId) -> RequestId | None:
        """The id of a request in flight as its client wrote it."""
        return self._unanswered.get(key)

    def ended_body(self, key: RequestId) -> bytes:
        """The answer to a request whose session has ended."""
        return error_body(CONNECTION_CLOSED, "The session ended before the request completed.", self.request_id(key))

    def end_at_once(self) -> bool:
        """Answer all requests as JSON, because the session has ended. False if the reply is a stream already."""
        return self._reply.answer(Answer(self._body([*self._answers, *map(self.ended_body, self.keys)])))

    def close_streams(self) -> None:
        """End the responses that carry the reply."""
        self._reply.close_stream()
        if self.stream is not None:
            self.stream.close()


def _write_events(stream: EventStream, number: int, events: list[tuple[int, bytes]]) -> None:
    """Write events that another process had given out."""
    for sequence, data in events:
        stream.write(frame(b"message", data, b"%d-%d" % (number, sequence)))


def _end_shared(stream: EventStream, shared: SharedStream) -> None:
    """End a stream that gets no more events. Requests whose answers were lost are answered with an error."""
    for request_id in shared.unanswered:
        message = "The process that ran this request has ended. The request may have had its effect."
        stream.write(frame(b"message", error_body(CONNECTION_CLOSED, message, request_id)))
    stream.close()


def _close_streams(posts: Iterable[_Post]) -> None:
    for post in posts:
        post.close_streams()


class StreamableHttpTransport:
    """The wire of one handshake-era session.

    Threads: the public methods are called on the host's loop. What is below "In the lane" runs there. `_posts` and
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
        shared_events: SharedEvents | None = None,
    ) -> None:
        """`shared_events`: where other processes find the events of this session, if they share any."""
        epoch = session.state.epoch if session.state is not None else 1
        self._lane = running.lane
        self._session = session
        self._link = Link(session, running.lane, max_backlog)
        self._shared_events = shared_events
        share = partial(shared_events.add, shared_events.log_name(session.id, epoch)) if shared_events else None
        self._buffer = EventBuffer(max_events, max_event_bytes, (epoch - 1) * EVENTS_OF_AN_EPOCH, share)
        self._is_restored = epoch > 1
        """Whether the client opened its streams with another process, and may have missed that lists have changed."""
        self._standalone = _ResumableStream(STANDALONE, self._buffer, self._note_sent)
        self._posts: dict[RequestId, _Post] = {}
        """Key of a request in flight -> its POST."""
        self._streams: dict[int, _ResumableStream] = {STANDALONE: self._standalone}
        self._last_number = STANDALONE
        self._loop = MessageLoop(
            running,
            self._link,
            self._write,
            self._answer,
            on_end=self._end_in_lane,
            takes_stateless=False,
            can_ask=self._has_standalone_stream,
        )
        self._on_end: Callable[[], object] = lambda: None
        self._following: set[asyncio.Task[None]] = set()
        """Streams of calls that another process still runs. Used on the host's loop."""

    def start(self, on_end: Callable[[], object]) -> None:
        """Start the message loop. `on_end` is called in the lane when it ends, for whatever reason; maybe twice."""
        self._on_end = on_end
        self._loop.start()

    def stop(self) -> None:
        """Cancel what runs for the session, answer what is open and end the streams."""
        self._loop.stop()
        for following in self._following:
            following.cancel()
        # What needs no lane is done here: the lane may be blocked for long.
        if self._standalone.stream is not None:
            self._standalone.stream.cut()
        posts = set(self._posts.copy().values())
        streamed = [post for post in posts if not post.end_at_once()]
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

    def ask(self, message: JSONRPCRequest, scope: Scope, memory: MessageMemory) -> "asyncio.Future[bool]":
        """Send a request of the host itself, whose answer no client sees. Raises what `deliver` raises."""
        return self._link.ask(message, scope, memory)

    def call(self, message: JSONRPCRequest, scope: Scope, memory: MessageMemory, reply: Reply) -> None:
        """Hand a request to the server; the answer goes to `reply`. Raises what `Link.admit` raises."""
        post = self._new_post(reply, is_batch=False, is_resumable=message.method != INITIALIZE and self._is_resumable)
        self._admit(message, scope, memory, post)

    def call_batch(self, batch: Batch, scope: Scope, memory: MessageMemory, reply: Reply) -> bool:
        """Hand the messages of a batch to the server; the answers go to `reply`. False if there will be none."""
        post = self._new_post(reply, is_batch=True, is_resumable=self._is_resumable)
        refusals = list(batch.refusals)
        for message in batch.messages:
            try:
                self._admit(message, scope, memory, post)
            except GatewayError as error:
                if isinstance(message, JSONRPCRequest):
                    refusals.append(count_refusal(error, as_message=True, request_id=message.id)[1])
        if not refusals and not any(isinstance(message, JSONRPCRequest) for message in batch.messages):
            return False
        self._streams[post.number] = post
        self._lane.post(self._finish_batch, post, refusals)
        return True

    def _admit(self, message: JSONRPCMessage, scope: Scope, memory: MessageMemory, post: _Post) -> None:
        if not isinstance(message, JSONRPCRequest):
            self._link.admit(message, scope, memory)
            return
        key = request_key(message.id)

        def register() -> None:
            post.expect(message.id)
            self._posts[key] = post
            self._streams[post.number] = post

        self._link.admit(message, scope, memory, self._metadata(key, post), register)

    def _new_post(self, reply: Reply, *, is_batch: bool, is_resumable: bool) -> _Post:
        self._last_number += 1
        post = _Post(
            self._last_number,
            self._buffer,
            self._note_sent,
            reply,
            is_batch=is_batch,
            is_resumable=is_resumable,
        )
        # A client must be able to resume the stream of a request that is silent for long, too.
        reply.on_silence = lambda: self._lane.post(post.open_stream)
        return post

    def _metadata(self, key: RequestId, post: _Post) -> ServerMessageMetadata:
        """What the handler of a request may ask of this transport. The functions in it are called in the lane."""

        async def close_sse_stream() -> None:
            post.open_stream()
            if post.stream is not None:
                post.stream.close()

        async def close_standalone_sse_stream() -> None:
            if self._standalone.stream is not None:
                self._standalone.stream.close()

        async def end_unanswered() -> None:
            # In this era only a response ends the stream of a request.
            self._finish(key, error_body(REQUEST_CANCELLED, "Request cancelled", post.request_id(key)))

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
        """Continue on `stream` after this event. False if the id is unknown or too old.

        Raises:
            TooManyRequests: the client would hold too much of what it has not read.
        """
        older = self._buffer.older(last_event_id)
        if older is None:
            return await self._lane.run(self._resume(stream, last_event_id))
        number, sequence = older
        shared = await self._shared(number, sequence)
        if shared is not None:
            _write_events(stream, number, shared.events)
        if number == STANDALONE:
            # If nothing is known of its events, it promises none of them, and goes on.
            return await self._lane.run(self._attach_again(stream))
        if shared is None:
            # It would never bring its answer.
            return False
        if shared.is_alive:
            following = asyncio.get_running_loop().create_task(self._follow(stream, number, sequence, shared))
            self._following.add(following)
            following.add_done_callback(self._following.discard)
        else:
            _end_shared(stream, shared)
        return True

    async def _shared(self, number: int, sequence: int) -> SharedStream | None:
        """What the process that gave out an event has shared of its stream since; None if that is not known."""
        if self._shared_events is None:
            return None
        epoch = (sequence - 1) // EVENTS_OF_AN_EPOCH + 1
        log = self._shared_events.log_name(self._session.id, epoch)
        with contextlib.suppress(EventsUnavailable):
            return await self._shared_events.read(log, number, sequence)
        return None

    async def _follow(self, stream: EventStream, number: int, sequence: int, shared: SharedStream) -> None:
        """Pass on what another process, which is about to end, still adds to a stream."""
        try:
            while shared.is_alive:
                await asyncio.sleep(FOLLOW_SECONDS)
                if stream.is_closed:
                    return
                if shared.events:
                    sequence = shared.events[-1][0]
                later = await self._shared(number, sequence)
                if later is None:
                    # Nothing is known of the requests. The client may resume once more.
                    return
                _write_events(stream, number, later.events)
                shared = later
            _end_shared(stream, shared)
        finally:
            stream.close()

    def _note_sent(self, sequence: int) -> None:
        self._lane.post(self._buffer.note_sent, sequence)

    # -- In the lane -------------------------------------------------------------------------------------------------

    def _has_standalone_stream(self) -> bool:
        stream = self._standalone.stream
        return stream is not None and not stream.is_closed

    def _announce_in_lane(self) -> None:
        for message in list_changed_messages():
            self._link.note_sent()
            self._standalone.send(message.model_dump_json(exclude_unset=True).encode())

    async def _attach_standalone(self, stream: EventStream) -> bool:
        current = self._standalone.stream
        if current is not None and not current.is_closed:
            return False
        self._standalone.attach(stream)
        if self._is_resumable:
            self._standalone.prime()
        if self._is_restored:
            self._is_restored = False
            self._announce_in_lane()
        return True

    async def _resume(self, stream: EventStream, last_event_id: str) -> bool:
        found = self._buffer.after(last_event_id)
        if found is None:
            return False
        number, missed = found
        # A client may ask for the same events any number of times, and each time they are copied.
        with self._link.weigh_again(sum(len(data) for _, data in missed)) or NOTHING_HELD as memory:
            resumed = self._streams.get(number)
            is_over = resumed is None  # the request has been answered: these events are the rest of its stream
            if resumed is None:
                resumed = _ResumableStream(number, self._buffer, self._note_sent)
            elif resumed.stream is not None:
                resumed.stream.close()
            resumed.replay(stream, missed, memory)
        if is_over:
            stream.close()
        return True

    async def _attach_again(self, stream: EventStream) -> bool:
        if self._standalone.stream is not None:
            self._standalone.stream.close()
        return await self._attach_standalone(stream)

    def _finish(self, key: RequestId, data: bytes, memory: MessageMemory | None = None) -> None:
        post = self._posts.pop(key, None)
        if post is not None and post.answer(key, data, memory):
            self._forget(post)

    def _finish_batch(self, post: _Post, refusals: list[bytes]) -> None:
        if post.finish_batch(refusals):
            self._forget(post)

    def _forget(self, post: _Post) -> None:
        self._buffer.end(post.number)
        self._streams.pop(post.number, None)

    def _end_in_lane(self) -> None:
        for key, post in list(self._posts.items()):
            self._finish(key, post.ended_body(key))
        if self._standalone.stream is not None:
            self._standalone.stream.close()
        self._buffer.close()
        self._on_end()

    async def _write(self, item: SessionMessage) -> None:
        message = item.message
        data = message_body(message)
        if isinstance(message, ANSWERS) and message.id is not None:
            self._answer(message.id, message.result if isinstance(message, JSONRPCResponse) else None, data)
            return
        target: _ResumableStream = self._standalone
        if isinstance(item.metadata, ServerMessageMetadata) and item.metadata.related_request_id is not None:
            target = self._posts.get(request_key(item.metadata.related_request_id), self._standalone)
        with self._link.weigh(data) or NOTHING_HELD as memory:
            self._link.note_sent()
            target.send(data, memory)
        try:
            await target.wait_for_room()
        except StreamClosed:
            # The client may come back: what it has missed is kept.
            return

    def _answer(self, request_id: RequestId, result: dict[str, Any] | None, data: bytes) -> None:
        data, memory = self._link.weigh_answer(request_id, data)
        with memory or NOTHING_HELD:
            if self._link.settle(request_id, result, len(data)):
                self._finish(request_key(request_id), data, memory)
