"""One SSE response body: written by a server's lane, sent to the client by the host's loop.

Lives here: framing, silence comments, the buffer between the two threads and what happens when the client does not
read. Not here: which messages belong on the stream.

Spec: HTML Living Standard, server-sent events; MCP 2024-11-05 basic/transports#http-with-sse.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from gateway.exceptions import StreamClosed
from gateway.http.asgi import Headers, Receive, Send
from gateway.http.responses import COMMON_HEADERS
from gateway.http.slow_readers import SlowReaderRule

COMMENT: Final = b": ping\r\n\r\n"
"""What a silent stream gets, so that clients and proxies with an idle timeout keep it open."""

BATCH_BYTES: Final = 64 * 1024
"""Events that wait together are sent together, up to so many bytes, and larger ones in pieces of so many."""

CUT_SECONDS: Final = 1.0
"""How long a stream that is cut may take to hand over what is left."""

STREAM_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # nginx and its kin would otherwise hold events back.
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

    `write` and `close` may be called from any thread, `wait_for_room` from lanes, the rest on the host's loop.
    """

    def __init__(self, send: Send, *, buffer_bytes: int, slow_reader_seconds: float) -> None:
        self._send = send
        self._buffer_bytes = buffer_bytes
        self._slow_reader = SlowReaderRule(slow_reader_seconds, buffer_bytes)
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes] = deque()
        # Two counters instead of one size: the sender's own needs no lock.
        self._bytes_written = 0
        self._bytes_sent = 0
        self._write_lock = threading.Lock()
        self._is_sender_idle = False
        self._sender_wakeup: asyncio.Future[None] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._is_cut = False
        self._cut_limit: asyncio.TimerHandle | None = None
        self._room_waiters: deque[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = deque()
        self.is_closed = False
        self._is_over = False
        """Whether the end has been sent."""
        self.was_left = False
        """Whether the client left before the end."""
        self.was_slow = False
        """Whether it was closed because its client did not read."""
        self.last_sent = time.monotonic()
        """When something was last handed to the client (monotonic seconds)."""

    async def start(self, headers: Headers = ()) -> None:
        """Send the response's head."""
        await self._send({"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS, *headers]})

    def write(self, chunk: bytes) -> None:
        """Queue `chunk`. After `close` it is dropped: the client has nowhere to read it from."""
        if self.is_closed:
            return
        with self._write_lock:
            self._bytes_written += len(chunk)
            self._chunks.append(chunk)
        self._wake_sender()

    def comment_if_silent(self, now: float, seconds: float) -> None:
        """Send a comment if nothing was sent for `seconds`."""
        if now - self.last_sent >= seconds and not self._chunks:
            self.write(COMMENT)

    @property
    def is_full(self) -> bool:
        """Whether as much is waiting for the client as may."""
        return self._bytes_written - self._bytes_sent > self._buffer_bytes

    @property
    def is_flushed(self) -> bool:
        """Whether all that was written has been handed to the ASGI server."""
        return self._bytes_sent == self._bytes_written

    @property
    def must_wait(self) -> bool:
        """Whether the lane has to call `wait_for_room` before it writes on."""
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
            # Order matters: say that we wait, then look again, so that room made in between is seen.
            if not self.is_full or self.is_closed:
                break
            await has_room.wait()
        if self.is_closed:
            # A handler may write for ever and wait for nothing else: this is where its cancellation reaches it.
            await asyncio.sleep(0)
            raise StreamClosed

    def give_up_if_slow(self, now: float) -> None:
        """End the stream if its client takes too little of what waits for it. To be called now and then.

        Enough is as much as may wait, or the rest of a stream that was closed, within the time of a slow reader.
        """
        if not self.is_full and not self.is_closed:
            self._slow_reader.forget()
            return
        sent = self._bytes_sent
        if self._slow_reader.is_broken(now, taken_bytes=sent, waiting_bytes=self._bytes_written - sent):
            self._give_up()

    def close(self) -> None:
        """End the stream once what was written has been sent. A second call changes nothing.

        The last event may be a large result: the client may take its time, unless it is too slow.
        """
        if not self.is_closed:
            self.is_closed = True
            self._wake_sender()
            self._wake_writers()

    def cut(self) -> None:
        """End the stream in a second, whether or not its client has read what is left by then."""
        self._is_cut = True
        self.close()
        self._call_in_loop(self._limit_sender)

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

        A client that does not read the rest in time gets no orderly end: the ASGI server resets its connection.
        """
        sender = self._sender = asyncio.create_task(self._send_chunks())
        watcher = asyncio.create_task(self._watch_disconnect(receive))
        try:
            if self._is_cut:
                self._limit_sender()
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done() and not sender.cancelled():
                sender.result()
        finally:
            self._sender = None
            if self._cut_limit is not None:
                self._cut_limit.cancel()
            self.is_closed = True
            self._wake_writers()
            sender.cancel()
            watcher.cancel()
            # Their outcome is known or of no interest; awaiting them leaves no task behind.
            await asyncio.gather(sender, watcher, return_exceptions=True)

    async def _send_chunks(self) -> None:
        if not self._chunks:
            # ASGI 3.0: a server keeps the head until there is a body. A client waits for it, and the first event of a
            # quiet stream is seconds away.
            await self._send({"type": "http.response.body", "body": b"", "more_body": True})
        while True:
            if self._chunks:
                chunk = self._chunks.popleft()
                if self._chunks and len(chunk) < BATCH_BYTES:
                    chunks, size = [chunk], len(chunk)
                    while self._chunks and size < BATCH_BYTES:
                        chunks.append(self._chunks.popleft())
                        size += len(chunks[-1])
                    chunk = b"".join(chunks)
                # In pieces, so that how far the client has come is seen, and no server holds a large event twice.
                for start in range(0, len(chunk), BATCH_BYTES):
                    piece = chunk[start : start + BATCH_BYTES]
                    await self._send({"type": "http.response.body", "body": piece, "more_body": True})
                    self._bytes_sent += len(piece)
                    self.last_sent = time.monotonic()
                    self._wake_writers()
                continue
            if self.is_closed:
                await self._send({"type": "http.response.body", "body": b""})
                self._is_over = True
                return
            # Order matters: say that we are idle, then look again, so that a chunk written in between is seen.
            self._sender_wakeup = self._loop.create_future()
            self._is_sender_idle = True
            if self._chunks or self.is_closed:
                self._is_sender_idle = False
                continue
            await self._sender_wakeup

    async def _watch_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self._is_over:  # ASGI tells of a disconnect after every response too
            self.is_closed = self.was_left = True

    def _wake_sender(self) -> None:
        if self._is_sender_idle:
            self._is_sender_idle = False
            self._call_in_loop(self._resolve_wakeup)

    def _call_in_loop(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the host's loop is closed: nobody is listening any more
            self._loop.call_soon_threadsafe(callback)

    def _resolve_wakeup(self) -> None:
        if self._sender_wakeup is not None and not self._sender_wakeup.done():
            self._sender_wakeup.set_result(None)

    def _wake_writers(self) -> None:
        if self.is_full and not self.is_closed:
            return
        # Several threads may be in here: asking whether one is left and taking it would be two steps.
        with contextlib.suppress(IndexError):
            while True:
                lane, has_room = self._room_waiters.popleft()
                with contextlib.suppress(RuntimeError):  # the lane has stopped
                    lane.call_soon_threadsafe(has_room.set)
