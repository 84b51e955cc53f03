"""Waits with a time limit that is hardly ever reached, at a small part of what asyncio's own waits cost.

Every call waits like this twice: its answer has a time limit, and its handler.
"""

import asyncio
import itertools
from collections.abc import Callable
from contextvars import Context
from typing import Any

Ring = Callable[[], object]


class Alarms:
    """Alarms of one event loop that are nearly always cancelled: one timer of the loop stands for all of them.

    To make and cancel a timer of uvloop takes as long as half a task does. Used on that loop only.
    """

    __slots__ = ("_due", "_next_at", "_numbers", "_timer")

    def __init__(self) -> None:
        self._due: dict[int, tuple[float, Ring]] = {}
        """The number of an alarm -> when it rings (seconds of the loop's clock), and what it calls."""
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._next_at = 0.0
        """When the timer ends. That may be before the next alarm is due, but never after it."""

    def set(self, seconds: float, ring: Ring) -> int:
        """Call `ring` in so many seconds. Returns the number with which the alarm can be cancelled."""
        loop = asyncio.get_running_loop()
        at, number = loop.time() + seconds, next(self._numbers)
        self._due[number] = at, ring
        if self._timer is None or at < self._next_at:
            self._wind(loop, at)
        return number

    def cancel(self, number: int) -> None:
        """Cancel an alarm. One that has rung stays as it is."""
        self._due.pop(number, None)

    def _wind(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_at = at
        # Without the context of the call that is the first to need it: the timer may last longer than the call.
        self._timer = loop.call_at(at, self._look, loop, context=Context())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ring what is due, and wait for the next alarm."""
        self._timer = None
        # The timer may have come a little early: uvloop counts whole milliseconds.
        now = max(loop.time(), self._next_at)
        for number in [number for number, (at, _) in self._due.items() if at <= now]:
            _, ring = self._due.pop(number, (now, None))
            if ring is not None:  # the one before it may have cancelled it
                ring()
        if self._due and self._timer is None:
            self._wind(loop, min(at for at, _ in self._due.values()))


async def wait_for(future: asyncio.Future[Any], seconds: float | None, alarms: Alarms) -> None:
    """Wait until `future` is done, for at most `seconds`; None for no limit. The future is not cancelled.

    As `asyncio.wait` does for many futures, at a third of its cost.
    """
    if future.done():
        return
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(wake)
    alarm = None if seconds is None else alarms.set(seconds, wake)
    try:
        await waiter
    finally:
        future.remove_done_callback(wake)
        if alarm is not None:
            alarms.cancel(alarm)
