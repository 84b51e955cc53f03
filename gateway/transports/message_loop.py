"""One session's message loop: the SDK's, run as a task in the lane of its server.

Lives here: how it starts and ends. Not here: what the client sends (`link`), where a message of the server goes (`sse`,
`streamable_http`).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from mcp.server.runner import serve_dual_era_loop, serve_loop
from mcp.shared.message import SessionMessage

from gateway.instances.call_clock import can_ask_client
from gateway.instances.running_server import RunningServer
from gateway.transports.link import Link

logger = logging.getLogger(__name__)

Send = Callable[[SessionMessage], Coroutine[Any, Any, None]]
"""Sends one message of the server; waits while its client is behind with reading. Called in the lane.

Raises anyio.BrokenResourceError where nobody can be reached any more.
"""


class _Outbound:
    """What the message loop writes to. Ending the streams behind it is the transport's business, by `on_end`."""

    def __init__(self, send: Send) -> None:
        self.send = send

    async def aclose(self) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class MessageLoop:
    """The task that serves one session. Started and stopped from the host's loop."""

    def __init__(
        self,
        running: RunningServer,
        link: Link,
        send: Send,
        *,
        on_end: Callable[[], object],
        takes_stateless: bool,
        can_ask: Callable[[], bool] = lambda: True,
    ) -> None:
        """`on_end` is called in the lane once the loop is told to end and when it has ended: it may be called twice.

        `takes_stateless`: a client that does not open with `initialize` may speak 2026-07-28. `can_ask` is called in
        the lane: whether a request of the server that belongs to none of the client's reaches the client now.
        """
        self._running = running
        self._link = link
        self._outbound = _Outbound(send)
        self._on_end = on_end
        self._takes_stateless = takes_stateless
        self._can_ask = can_ask
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False

    def start(self) -> None:
        """Start the loop."""
        self._running.lane.post(self._start_in_lane)

    def stop(self) -> None:
        """End the loop and cancel its handlers."""
        self._is_stopped = True
        self._running.lane.post(self._stop_in_lane)

    def _start_in_lane(self) -> None:
        if not self._is_stopped:
            self._task = self._running.lane.loop.create_task(self._serve(), context=self._running.context.copy())
            self._task.add_done_callback(lambda task: self._on_end())

    def _stop_in_lane(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._on_end()

    async def _serve(self) -> None:
        running, link = self._running, self._link
        can_ask_client.set(self._can_ask)
        # `serve_dual_era_loop` alone would do, but it relays every message of the session through one more task and
        # stream. What opens with `initialize` needs none of it.
        is_handshake = not self._takes_stateless or await link.opens_with_handshake()
        serve = serve_loop if is_handshake else serve_dual_era_loop
        try:
            await serve(
                running.server,
                link.inbound,
                self._outbound,
                lifespan_state=running.lifespan_state,
                session_id=link.session.id,
                init_options=running.initialization_options,
            )
        except Exception:
            # The message loop is the SDK's and contains handlers itself; what gets here costs this session only.
            logger.exception(
                "The message loop of a session of %s failed (%s)", link.session.server_name, link.session.transport
            )
