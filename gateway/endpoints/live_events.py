"""What the host does, live: server-sent events for the overview of the admin, as a plain ASGI endpoint.

A Django streaming view does not notice that its client has left (ASGIHandler of 5.2 passes no cancellation on). One
snapshot every two seconds is made in a thread and shared by all who watch. Not here: what is in it
(`console.snapshot`).
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from gateway.conf import conf
from gateway.console.overview import PERMISSION
from gateway.console.snapshot import take_snapshot
from gateway.endpoints.answering import new_stream
from gateway.endpoints.page_requests import PageRequests
from gateway.exceptions import AuthenticationUnavailable, GatewayError, NotPermitted
from gateway.host.host import Host
from gateway.http.asgi import Receive, Scope, Send
from gateway.http.refusals import refuse_error, refuse_method
from gateway.http.responses import respond
from gateway.transports.event_stream import EventStream, frame

logger = logging.getLogger(__name__)

PATH: Final = "/-/console/live"

TICK_SECONDS: Final = 2.0
"""How often there is a new snapshot."""

CHECK_SECONDS: Final = 20.0
"""How often an operator is checked again. A check may take 10 s, so one who logs out is cut off within 30 s."""

RETRY_SECONDS: Final = 10


class LiveEvents:
    """Answers `/-/console/live`, and passes all other requests on."""

    def __init__(self, host: Host, inner: Any) -> None:
        self._host = host
        self._inner = inner
        self._pages = PageRequests()
        self._feed = Feed(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) != PATH:
            await self._inner(scope, receive, send)
        elif scope["method"] != "GET":
            await refuse_method(send, "GET")
        elif not await self._host.origin_policy.refuse_foreign(scope, send):
            try:
                self._host.doorkeeper.require_reachable(scope)
                await self._pages.require_still(scope, PERMISSION)
            except GatewayError as error:
                await refuse_error(send, error)
            else:
                await self._watch(scope, receive, send)

    async def _watch(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._feed.is_full:
            body = json.dumps(
                {"error": f"{conf.max_consoles} browsers are watching already. Try again later."}
            ).encode()
            retry = [(b"retry-after", str(RETRY_SECONDS).encode())]
            await respond(send, 503, body, b"application/json", retry)
            return
        stream = new_stream(self._host, send)
        with self._feed.shown_on(stream):
            checking = asyncio.create_task(self._check_again(scope, stream))
            try:
                await stream.start()
                await stream.run(receive)
            finally:
                checking.cancel()
                await asyncio.gather(checking, return_exceptions=True)

    async def _check_again(self, scope: Scope, stream: EventStream) -> None:
        """End the stream once its operator is logged out or may not watch any more."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            # While the database is away nobody can be checked, and that is when operators need to see something.
            with contextlib.suppress(AuthenticationUnavailable):
                try:
                    await self._pages.require_still(scope, PERMISSION)
                except NotPermitted:
                    stream.close()
                    return


class Feed:
    """Shows each snapshot on all streams. Used on the host's loop; it does nothing while nobody watches."""

    def __init__(self, host: Host, take: Callable[[Host], dict[str, Any]] = take_snapshot) -> None:
        """`take` is called in a thread."""
        self._host = host
        self._take = take
        self._read_at: dict[EventStream, float] = {}
        """Stream -> when its client had last read everything (monotonic seconds)."""
        self._task: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        host.drain.on_begin.append(self.close)

    @property
    def is_full(self) -> bool:
        """Whether as many watch as may."""
        return len(self._read_at) >= conf.max_consoles

    @contextmanager
    def shown_on(self, stream: EventStream) -> Iterator[None]:
        """Show snapshots on `stream` inside the block."""
        self._read_at[stream] = time.monotonic()
        if self._host.drain.is_begun:
            stream.close()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            del self._read_at[stream]
            if not self._read_at and self._task is not None:
                self._task.cancel()
                self._task = None

    def close(self) -> None:
        """End all streams: the host is to stop. Browsers try again by themselves and find the next process."""
        for stream in list(self._read_at):
            stream.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "live-events") as thread:
            while True:
                started = time.monotonic()
                try:
                    event = await loop.run_in_executor(thread, self._event)
                except Exception:  # one snapshot that fails must not end those after it
                    logger.exception("The overview could not be made")
                else:
                    for stream in list(self._read_at):
                        self._show(stream, event)
                await asyncio.sleep(max(TICK_SECONDS - (time.monotonic() - started), TICK_SECONDS / 10))

    def _event(self) -> bytes:
        return frame(b"snapshot", json.dumps(self._take(self._host), separators=(",", ":")).encode())

    def _show(self, stream: EventStream, event: bytes) -> None:
        now = time.monotonic()
        if stream.is_flushed:
            self._read_at[stream] = now
            stream.write(event)
        # A client that has not read the last snapshot gets no new one, and is cut off like any slow reader.
        elif now - self._read_at[stream] >= conf.slow_reader_seconds:
            stream.cut()
