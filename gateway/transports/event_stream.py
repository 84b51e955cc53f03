"""One SSE response body: a server's lane writes it, the host's loop sends it to the client.

Lives here: the format of events, comments on silent streams, the buffer between the two threads, and backpressure: what
happens while the client does not read. Not here: which messages belong on the stream.

Spec: HTML Living Standard, server-sent events; MCP 2024-11-05 basic/transports#http-with-sse.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

from gateway.exceptions import StreamClosed
from gateway.http.asgi import Headers, Receive, Send
from gateway.http.requests import until_disconnect
from gateway.http.responses import COMMON_HEADERS
from gateway.http.slow_readers import SlowReaderRule
from gateway.transports.message_budget import MessageMemory
from gateway.wakeups import Wakeups

COMMENT: Final = b": ping\r\n\r\n"
"""Sent on silent streams, so that clients and proxies with an idle timeout keep them open."""

BATCH_BYTES: Final = 64 * 1024
"""Events that are waiting are sent together, up to this size. Larger events are sent in pieces of this size."""

CUT_SECONDS: Final = 1.0
"""How long a stream that is cut may take to send what is left."""

STREAM_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # nginx and similar proxies would hold events back without this.
    (b"x-accel-buffering", b"no"),
    (b"connection", b"keep-alive"),
    *COMMON_HEADERS,
)


_UNICODE_LINE_BREAKS: Final = (
    ("\u0085".encode(), rb"\u0085"),
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
)
"""Line breaks that JSON allows in strings. The standard does not end a line there, but older SSE clients do (those that
use Python's `str.splitlines`), and then wait forever for the rest of the event."""


def frame(event: bytes, data: bytes, event_id: bytes | None = None) -> bytes:
    """One event. `data` is JSON, or text without line breaks."""
    if not data.isascii():
        for line_break, escape in _UNICODE_LINE_BREAKS:
            data = data.replace(line_break, escape)
    if event_id is None:
        return b"event: %b\r\ndata: %b\r\n\r\n" % (event, data)
    return b"id: %b\r\nevent: %b\r\ndata: %b\r\n\r\n" % (event_id, event, data)


class EventStream:
    """The body of one event stream.

    Threads: `write`, `close` and `cut` may be called on any thread, `wait_for_room` in lanes, all else on the host's
    loop.
    """

    __slots__ = (
        "_buffer_bytes",
        "_bytes_sent",
        "_bytes_written",
        "_chunks",
        "_cut_limit",
        "_is_abandoned",
        "_is_cut",
        "_is_over",
        "_is_sender_idle",
        "_loop",
        "_marks",
        "_room_waiters",
        "_send",
        "_sender",
        "_sender_wakeup",
        "_slow_reader",
        "_wakeups",
        "_write_lock",
        "is_closed",
        "last_sent",
        "was_left",
        "was_slow",
    )

    def __init__(
        self,
        send: Send,
        *,
        buffer_bytes: int,
        slow_reader_seconds: float,
        loop: asyncio.AbstractEventLoop | None = None,
        wakeups: Wakeups | None = None,
    ) -> None:
        """`loop` is the host's, which is the running one if none is given. `wakeups`: its own, which all share."""
        self._send = send
        self._buffer_bytes = buffer_bytes
        self._slow_reader = SlowReaderRule(slow_reader_seconds, buffer_bytes)
        self._loop = loop or asyncio.get_running_loop()
        self._wakeups = wakeups or Wakeups(self._loop)
        # Lists, although they are used as queues: they are nearly always empty, and an empty deque takes 700 bytes.
        self._chunks: list[bytes] = []
        # Two counters instead of one size: only the sender writes the second one, so it needs no lock.
        self._bytes_written = 0
        self._bytes_sent = 0
        self._marks: list[tuple[int, Callable[[], object] | None, MessageMemory | None]] = []
        """How many bytes must have been sent, and what is called and released then; in ascending order."""
        self._write_lock = threading.Lock()
        self._is_sender_idle = False
        self._sender_wakeup: asyncio.Future[None] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._is_cut = False
        self._is_abandoned = False
        self._cut_limit: asyncio.TimerHandle | None = None
        self._room_waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self.is_closed = False
        self._is_over = False
        """Whether the end has been sent."""
        self.was_left = False
        """Whether the client left before the end."""
        self.was_slow = False
        """Whether it was closed because the client did not read."""
        self.last_sent = time.monotonic()
        """When something was last handed to the client (monotonic seconds)."""

    async def start(self, headers: Headers = ()) -> None:
        """Send the status line and the headers."""
        await self._send({"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS, *headers]})

    def write(
        self, chunk: bytes, on_sent: Callable[[], object] | None = None, memory: MessageMemory | None = None
    ) -> None:
        """Queue `chunk`. After `close` it is dropped: the client has nowhere to read it from.

        `on_sent` is called on the host's loop once the chunk has been handed to the ASGI server, if it ever is.
        `memory` is held until then, or until it is known that the chunk will not be sent.
        """
        if self.is_closed:
            return
        with self._write_lock:
            if self._is_abandoned:
                return
            self._bytes_written += len(chunk)
            if on_sent is not None or memory is not None:
                if memory is not None:
                    memory.keep()
                self._marks.append((self._bytes_written, on_sent, memory))
            self._chunks.append(chunk)
        self._wake_sender()

    def comment_if_silent(self, now: float, seconds: float) -> None:
        """Send a comment if nothing was sent for `seconds`."""
        if now - self.last_sent >= seconds and not self._chunks:
            self.write(COMMENT)

    @property
    def is_full(self) -> bool:
        """Whether more is waiting for the client than the buffer may hold."""
        return self._bytes_written - self._bytes_sent > self._buffer_bytes

    @property
    def is_flushed(self) -> bool:
        """Whether everything that was written has been handed to the ASGI server."""
        return self._bytes_sent == self._bytes_written

    @property
    def must_wait(self) -> bool:
        """Whether the lane must call `wait_for_room` before it writes more."""
        return self.is_closed or self.is_full

    async def wait_for_room(self) -> None:
        """Wait until the client has read enough. Called in the writing lane.

        Raises:
            StreamClosed: the stream ended, perhaps because the client took too long.
        """
        lane = asyncio.get_running_loop()
        while self.is_full and not self.is_closed:
            has_room = asyncio.Event()
            self._room_waiters.append((lane, has_room))
            # The order matters: first announce that we wait, then look again, so that no wake-up is missed.
            if not self.is_full or self.is_closed:
                break
            await has_room.wait()
        if self.is_closed:
            # A handler may write forever and wait for nothing else. Here its cancellation can reach it.
            await asyncio.sleep(0)
            raise StreamClosed

    def give_up_if_slow(self, now: float) -> None:
        """End the stream if its client reads too slowly. Call it regularly.

        Within `slow_reader_seconds` the client must read as much as the buffer may hold, or the rest of a stream that
        was closed.
        """
        if not self.is_full and not self.is_closed:
            self._slow_reader.forget()
            return
        sent = self._bytes_sent
        if self._slow_reader.is_broken(now, taken_bytes=sent, waiting_bytes=self._bytes_written - sent):
            self._give_up()

    def close(self) -> None:
        """End the stream after everything that was written has been sent. A second call changes nothing.

        The last event may be a large result, so this sets no time limit; `give_up_if_slow` does.
        """
        if not self.is_closed:
            self.is_closed = True
            self._wake_sender()
            self._wake_writers()

    def cut(self) -> None:
        """End the stream within a second, even if the client has not read the rest by then."""
        self._is_cut = True
        self.close()
        self._wakeups.send(self._limit_sender)

    def abandon(self) -> None:
        """Drop what was not sent: nothing will be sent any more, or ever was. A second call changes nothing."""
        self.close()
        with self._write_lock:
            self._is_abandoned = True
            marks, self._marks = self._marks, []
            self._chunks.clear()
        for _, _, memory in marks:
            if memory is not None:
                memory.release()

    def _limit_sender(self) -> None:
        if self._sender is not None and self._cut_limit is None:
            self._cut_limit = self._loop.call_later(CUT_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self.was_slow = self._is_cut = True
        self.close()
        if self._sender is not None:
            self._sender.cancel()

    async def run(self, receive: Receive) -> None:
        """Send what is written until the stream is closed or the client leaves.

        If the client does not read the rest in time, the response has no proper end: the ASGI server resets the
        connection.
        """
        sender = self._sender = asyncio.create_task(self._send_chunks())
        watcher = asyncio.create_task(self._watch_disconnect(receive))
        # `asyncio.wait` for the two would hold 700 bytes more for each open stream.
        watcher.add_done_callback(lambda _: sender.cancel())
        try:
            if self._is_cut:
                self._limit_sender()
            await sender
        except asyncio.CancelledError:
            # If only the sender was cancelled, the client has left, or does not read the rest.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        finally:
            self._sender = None
            if self._cut_limit is not None:
                self._cut_limit.cancel()
            self.is_closed = True
            self._wake_writers()
            sender.cancel()
            watcher.cancel()
            self.abandon()
            # Await them so that no task is left behind. Their results are known or do not matter.
            await asyncio.gather(sender, watcher, return_exceptions=True)

    async def _send_chunks(self) -> None:
        if not self._chunks:
            # ASGI 3.0: a server may hold the headers back until the body starts. The client waits for them, and the
            # first event of a quiet stream may be seconds away.
            await self._send({"type": "http.response.body", "body": b"", "more_body": True})
        while True:
            if self._chunks:
                chunk = self._take_chunks()
                # In pieces, so that progress shows while a large event is sent, and no ASGI server copies it whole.
                for start in range(0, len(chunk), BATCH_BYTES):
                    piece = chunk[start : start + BATCH_BYTES]
                    await self._send({"type": "http.response.body", "body": piece, "more_body": True})
                    self._bytes_sent += len(piece)
                    self.last_sent = time.monotonic()
                    self._wake_writers()
                    while self._marks and self._marks[0][0] <= self._bytes_sent:
                        self._reach_mark()
                chunk = piece = b""  # a large event must not stay in memory while the stream is idle
                continue
            if self.is_closed:
                await self._send({"type": "http.response.body", "body": b""})
                self._is_over = True
                return
            # The order matters: first announce that we are idle, then look again, so that no chunk is overlooked.
            self._sender_wakeup = self._loop.create_future()
            self._is_sender_idle = True
            if self._chunks or self.is_closed:
                self._is_sender_idle = False
                continue
            await self._sender_wakeup

    def _reach_mark(self) -> None:
        _, on_sent, memory = self._marks.pop(0)
        if memory is not None:
            memory.release()
        if on_sent is not None:
            on_sent()

    def _take_chunks(self) -> bytes:
        """The chunks that are sent next, joined."""
        # Writers may add more meanwhile, and an `abandon` may take all away.
        chunks, size = [], 0
        for chunk in self._chunks:
            chunks.append(chunk)
            size += len(chunk)
            if size >= BATCH_BYTES:
                break
        del self._chunks[: len(chunks)]
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _watch_disconnect(self, receive: Receive) -> None:
        await until_disconnect(receive)
        if not self._is_over:
            self.is_closed = self.was_left = True

    def _wake_sender(self) -> None:
        if self._is_sender_idle:
            self._is_sender_idle = False
            self._wakeups.send(self._resolve_wakeup)

    def _resolve_wakeup(self) -> None:
        if self._sender_wakeup is not None and not self._sender_wakeup.done():
            self._sender_wakeup.set_result(None)

    def _wake_writers(self) -> None:
        if self.is_full and not self.is_closed:
            return
        # Several threads may be here at once, so do not ask first whether a waiter is left.
        with contextlib.suppress(IndexError):
            while True:
                lane, has_room = self._room_waiters.pop(0)
                with contextlib.suppress(RuntimeError):  # the lane has stopped
                    lane.call_soon_threadsafe(has_room.set)
