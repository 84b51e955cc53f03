"""Wakes one event loop from others: what they send in one turn goes together.

Each message passes from the host's loop to a lane and back. To wake a thread takes a system call, and often a switch of
threads. So a loop first finishes its turn, and then wakes the other one once for all.
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context

logger = logging.getLogger(__name__)

Wakeup = Callable[[], object]


class Wakeups:
    """The wake-ups of one event loop. `send` may be called from any thread."""

    __slots__ = ("_loop", "_unsent")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._unsent: dict[asyncio.AbstractEventLoop, list[Wakeup]] = {}
        """Loop that sends -> what it has sent in its present turn. Each loop touches its own entry only."""

    def send(self, wakeup: Wakeup) -> None:
        """Call `wakeup` in the loop soon, in order. Does nothing if the loop is closed."""
        try:
            sender = asyncio.get_running_loop()
        except RuntimeError:  # a thread without a loop has no turns
            self._pass_on([wakeup])
            return
        unsent = self._unsent.get(sender)
        if unsent is not None:
            unsent.append(wakeup)
            return
        self._unsent[sender] = [wakeup]
        sender.call_soon(self._end_turn, sender, context=Context())

    def _end_turn(self, sender: asyncio.AbstractEventLoop) -> None:
        self._pass_on(self._unsent.pop(sender))

    def _pass_on(self, wakeups: list[Wakeup]) -> None:
        try:
            # They belong to several callers, so they see the context variables of none.
            self._loop.call_soon_threadsafe(_run, wakeups, context=Context())
        except RuntimeError:  # the loop is closed: nobody waits in it
            return


def _run(wakeups: list[Wakeup]) -> None:
    for wakeup in wakeups:
        try:
            wakeup()
        except Exception:  # the others must be woken in any case
            logger.exception("A wake-up failed")
