"""Wakes one event loop from others, once for all that they send until it runs.

Each message passes from the host's loop to a lane and back. To wake a thread takes a system call, and often a switch of
threads. A loop that was woken and does not run yet needs no second wake-up.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextvars import Context

logger = logging.getLogger(__name__)

Wakeup = Callable[[], object]


class Wakeups:
    """The wake-ups of one event loop. `send` may be called from any thread."""

    __slots__ = ("_is_woken", "_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Wakeup] = deque()
        self._is_woken = False
        """Whether the loop will look at what waits. It says no before it looks, so nothing is overlooked."""

    def send(self, wakeup: Wakeup) -> None:
        """Call `wakeup` in the loop soon, in order. Does nothing if the loop is closed."""
        self._waiting.append(wakeup)
        if self._is_woken and not self._loop.is_closed():
            return
        self._is_woken = True
        try:
            # What waits belongs to several callers, so it sees the context variables of none.
            self._loop.call_soon_threadsafe(self._run, context=Context())
        except RuntimeError:  # the loop is closed: nobody waits in it
            self._waiting.clear()

    def _run(self) -> None:
        self._is_woken = False
        for _ in range(len(self._waiting)):
            wakeup = self._waiting.popleft()
            try:
                wakeup()
            except Exception:  # the others must be woken in any case
                logger.exception("A wake-up failed")
