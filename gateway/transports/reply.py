"""The answer to one POST: JSON if nothing comes before the result, and an event stream otherwise.

What the handler does decides this, in the lane. The host's loop writes the response. The SDK (mcp 2.3) either streams
every answer of the handshake era, at a third of the speed, or none, which loses notifications.

Spec: 2025-11-25 basic/transports#sending-messages-to-the-server, rule 5: either content type may answer a request.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from gateway.http.asgi import Headers, Receive, Send
from gateway.http.requests import until_disconnect
from gateway.http.responses import respond_in_steps
from gateway.transports.event_stream import EventStream
from gateway.waiting import Alarms
from gateway.wakeups import Wakeups

WATCH_AFTER_SECONDS: Final = 1.0
"""Only for answers that take longer does a task watch whether the client leaves. Most are faster."""


class Answer(NamedTuple):
    """A whole response."""

    body: bytes
    status: int = 200
    content_type: bytes = b"application/json"
    headers: Headers = ()


class Reply:
    """The answer to one POST. At first it is open whether it will be JSON or a stream.

    `answer` and `open_stream` may be called from any thread. The first call of either decides.
    """

    def __init__(
        self,
        make_stream: Callable[[], EventStream],
        send: Send,
        headers: Headers = (),
        *,
        step_bytes: int = 1024 * 1024,
        step_seconds: float = 30.0,
        wakeups: Wakeups | None = None,
        alarms: Alarms | None = None,
    ) -> None:
        """`make_stream` is called when the stream is first needed, on any thread.

        Of a whole response that is large, the client must take `step_bytes` in each `step_seconds`. `wakeups` and
        `alarms` are those of the host's loop, which all replies share.
        """
        self._make_stream = make_stream
        self._stream: EventStream | None = None
        self._is_stream_closed = False
        self._send = send
        self._headers = headers
        self._step_bytes = step_bytes
        self._step_seconds = step_seconds
        self._loop = asyncio.get_running_loop()
        self._wakeups = wakeups or Wakeups(self._loop)
        self._alarms = alarms or Alarms()
        self._is_decided = False
        """Whether the host's loop knows of the decision."""
        self._wakeup: asyncio.Future[None] | None = None
        """What the response waits for. One future that an alarm resolves too: a second one would cost a turn."""
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self.is_stream = False
        """Whether the answer is an event stream."""
        self.on_silence: Callable[[], object] | None = None
        """Called on the host's loop when the answer has become a stream because nothing was decided in time."""

    @property
    def stream(self) -> EventStream:
        """The stream that the answer is, or may become."""
        with self._lock:
            if self._stream is None:
                self._stream = self._make_stream()
                if self._is_stream_closed:
                    self._stream.close()
            return self._stream

    def close_stream(self) -> None:
        """Close the stream, if the answer is one or still becomes one."""
        with self._lock:
            self._is_stream_closed = True
            stream = self._stream
        if stream is not None:
            stream.close()

    def abandon(self) -> None:
        """Drop what was not sent: `run` has ended."""
        # It leads to the call, and the call back here: the answer would stay until garbage is collected.
        self.on_silence = None
        with self._lock:
            self._is_stream_closed = True
            stream = self._stream
        if stream is not None:
            stream.abandon()

    def answer(self, answer: Answer) -> bool:
        """Answer with a whole response. Returns False if the answer is a stream already: then write to that."""
        with self._lock:
            if self.is_stream:
                return False
            self._answer = self._answer or answer
        self._notify()
        return True

    def open_stream(self) -> None:
        """Answer with an event stream."""
        with self._lock:
            self.is_stream = self._answer is None
        self._notify()

    def _notify(self) -> None:
        if not self._is_decided:
            self._wakeups.send(self._decide)

    def _decide(self) -> None:
        self._is_decided = True
        self._wake()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def _wait(self, seconds: float) -> None:
        """Wait for the decision, for at most `seconds`."""
        if self._is_decided:
            return
        self._wakeup = self._loop.create_future()
        alarm = self._alarms.set(seconds, self._wake)
        try:
            await self._wakeup
        finally:
            self._alarms.cancel(alarm)
            self._wakeup = None

    async def run(
        self, receive: Receive, *, silence_seconds: float, counted: Callable[[], AbstractContextManager[object]]
    ) -> bool:
        """Answer the client. Returns False if it left before it had its whole answer, or did not read it.

        An answer that takes longer than `silence_seconds` is streamed, so that comments keep its connection open.
        While the answer is a stream, `counted` is entered.
        """
        # It leads back to this reply. Such a circle would wait for the garbage collector.
        on_silence, self.on_silence = self.on_silence, None
        started = time.monotonic()
        await self._wait(min(WATCH_AFTER_SECONDS, silence_seconds))
        if not self._is_decided:
            if not await self._wait_watching(receive, silence_seconds - (time.monotonic() - started)):
                self.close_stream()
                return False
            if not self._is_decided:
                self.open_stream()  # unless it is answered by now
                if self.is_stream and on_silence is not None:
                    on_silence()
        if self._answer is not None:
            answer = self._answer
            return await respond_in_steps(
                self._send,
                answer.status,
                answer.body,
                answer.content_type,
                (*self._headers, *answer.headers),
                step_bytes=self._step_bytes,
                step_seconds=self._step_seconds,
            )
        with counted():
            await self.stream.start(self._headers)
            await self.stream.run(receive)
        return not (self.stream.was_left or self.stream.was_slow)

    async def _wait_watching(self, receive: Receive, seconds: float) -> bool:
        """Wait for the decision, and watch the client meanwhile. Returns False if it has left."""
        watcher = asyncio.create_task(until_disconnect(receive))
        watcher.add_done_callback(lambda _: self._wake())
        try:
            await self._wait(seconds)
            return self._is_decided or not watcher.done()
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
