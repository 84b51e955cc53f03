"""The drain: the time between the request to stop and the stop, in which calls in flight may finish.

`host` begins it when the process receives SIGTERM and stops everything else afterwards.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

from gateway.conf import conf
from gateway.host.serving_loop import ServingLoop
from gateway.transports.sessions import STOPPED, Sessions
from gateway.transports.stateless_calls import StatelessCalls
from gateway.transports.streams import Streams

logger = logging.getLogger(__name__)

CLOSING_SECONDS: Final = 0.5
"""How long before the end of the grace time the host ends sessions whose calls are not answered yet."""

LOOK_SECONDS: Final = 0.05
"""How often a drain looks for sessions that have been answered."""


class Drain:
    """Ends sessions as soon as their calls are answered. Used on the host's loop."""

    def __init__(
        self,
        loop: ServingLoop,
        sessions: Sessions,
        streams: Streams,
        stateless_calls: StatelessCalls,
        on_begin: Callable[[], object] = lambda: None,
    ) -> None:
        self._on_begin = on_begin
        self._loop = loop
        self._sessions = sessions
        self._streams = streams
        self._stateless_calls = stateless_calls
        self._settled: set[UUID] = set()
        """Sessions that were settled at the last look."""
        self.on_begin: list[Callable[[], object]] = []
        """Called when the drain begins."""
        self.is_begun = False
        """Whether the process has been told to stop."""
        self.ends_at = float("inf")
        """When the grace time ends (monotonic seconds)."""

    @property
    def seconds_left(self) -> float:
        """How much of the grace time is left; infinite before the drain begins."""
        return self.ends_at - time.monotonic()

    def begin(self) -> None:
        """Begin the drain: health reports it, open streams end, calls in flight go on."""
        if self.is_begun:
            return
        self.is_begun = True
        self.ends_at = time.monotonic() + conf.shutdown_grace_seconds
        logger.info("Draining: %d sessions, %d streams", len(self._sessions), len(self._streams))
        self._on_begin()
        self._stateless_calls.stop_listening()
        for begin in self.on_begin:
            begin()
        self._loop.start_task(self._follow())

    async def _follow(self) -> None:
        # Sessions that take too long end a moment before the ASGI server cancels them, so that their streams end
        # properly.
        closes_at = self.ends_at - min(CLOSING_SECONDS, conf.shutdown_grace_seconds / 10)
        while True:
            self.end_sessions(is_late=time.monotonic() >= closes_at)
            await asyncio.sleep(LOOK_SECONDS)

    def end_sessions(self, *, is_late: bool) -> None:
        """End the sessions that are settled; all sessions when it is late.

        A session ends only if it was settled at the last look too. A lane forgets a call just before it writes the
        answer, and an answer that is written to a closed stream is lost.
        """
        settled = {session.row_id for session in self._sessions if session.is_settled}
        for session in self._sessions:
            if is_late or session.row_id in settled & self._settled:
                session.end(STOPPED)
        self._settled = settled
