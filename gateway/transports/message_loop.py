"""Runs the SDK's message loop for one session, as a task in the lane of its server.

Lives here: how the loop starts and ends. Not here: what the client sends (`link`), which task handles it
(`dispatcher`), where the server's messages go (`sse`, `streamable_http`).
"""

import asyncio
import logging
from collections.abc import Callable

from mcp.server.connection import Connection
from mcp.server.runner import serve_connection, serve_dual_era_loop

from gateway.instances.call_clock import can_ask_client
from gateway.instances.call_log import current_conversation
from gateway.instances.running_server import RunningServer
from gateway.transports.dispatcher import Outbound, SendAnswer, SessionDispatcher, WriteMessage
from gateway.transports.link import Link

logger = logging.getLogger(__name__)


class MessageLoop:
    """The task that serves one session.

    Threads: `start` and `stop` are called on the host's loop, everything else runs in the lane.
    """

    def __init__(
        self,
        running: RunningServer,
        link: Link,
        write: WriteMessage,
        answer: SendAnswer,
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
        self._write = write
        self._answer = answer
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
        try:
            if not self._takes_stateless or await link.opens_with_handshake():
                await self._serve_handshake()
            else:
                await serve_dual_era_loop(
                    running.server,
                    link.inbound,
                    Outbound(self._write),
                    lifespan_state=running.lifespan_state,
                    session_id=link.session.id,
                    init_options=running.initialization_options,
                )
        except Exception:
            # The SDK's loop contains what handlers raise. What arrives here costs this session only.
            logger.exception(
                "The message loop of a session of %s failed (%s)", link.session.server_name, link.session.transport
            )

    async def _serve_handshake(self) -> None:
        """Do what the SDK's `serve_loop` does, with a dispatcher of our own.

        `serve_dual_era_loop` would do as well, but it relays every message of the session through one more task.
        """
        running, link = self._running, self._link
        dispatcher = SessionDispatcher(link.inbound, self._write, self._answer, link.withhold)
        await serve_connection(
            running.server,
            dispatcher,
            connection=Connection.for_loop(dispatcher, session_id=link.session.id),
            lifespan_state=running.lifespan_state,
            init_options=running.initialization_options,
        )
