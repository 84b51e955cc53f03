"""Runs the SDK's message loop for one session, as a task in the lane of its server.

Lives here: how the loop starts and ends. Not here: what the client sends (`link`), where the server's messages go
(`sse`, `streamable_http`).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from mcp.server.runner import serve_dual_era_loop, serve_loop
from mcp.shared.message import SessionMessage

from gateway.instances.call_clock import can_ask_client
from gateway.instances.call_log import current_conversation
from gateway.instances.running_server import RunningServer
from gateway.transports.link import Link

logger = logging.getLogger(__name__)

WriteMessage = Callable[[SessionMessage], Coroutine[Any, Any, None]]
"""Sends one message of the server, and waits while the client is slow to read. Called in the lane.

Raises anyio.BrokenResourceError if nobody can be reached any more.
"""


class _Outbound:
    """The stream that the message loop writes to. Closing it does nothing: the transport ends its own streams."""

    def __init__(self, write: WriteMessage) -> None:
        self.send = write

    async def aclose(self) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class MessageLoop:
    """The task that serves one session.

    Threads: `start` and `stop` are called on the host's loop, everything else runs in the lane.
    """

    def __init__(
        self,
        running: RunningServer,
        link: Link,
        write: WriteMessage,
        *,
        on_end: Callable[[], object],
        takes_stateless: bool,
        can_ask: Callable[[], bool] = lambda: True,
    ) -> None:
        """`on_end` is called in the lane when the loop is told to stop and when it has ended, so maybe twice.

        `takes_stateless`: a client that does not start with `initialize` may speak 2026-07-28. `can_ask` is called in
        the lane and tells whether the client can be asked something outside of its own requests now.
        """
        self._running = running
        self._link = link
        self._outbound = _Outbound(write)
        self._on_end = on_end
        self._takes_stateless = takes_stateless
        self._can_ask = can_ask
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False
        """Set on the host's loop, before the lane is told."""

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
            self._task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._link.close()
        self._on_end()

    def _stop_in_lane(self) -> None:
        if self._task is None:
            self._link.close()
        else:
            self._task.cancel()
        self._on_end()

    async def _serve(self) -> None:
        running, link = self._running, self._link
        can_ask_client.set(self._can_ask)
        current_conversation.set(link.conversation)
        # `serve_dual_era_loop` alone would be enough, but it relays every message of the session through one more task
        # and stream. A session that starts with `initialize` needs neither.
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
            # The SDK's loop contains what handlers raise. What arrives here costs this session only.
            logger.exception(
                "The message loop of a session of %s failed (%s)", link.session.server_name, link.session.transport
            )
