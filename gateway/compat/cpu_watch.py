"""Bounds how many threads of a server compute at once. Threads that wait for something do not count.

A thread that waits for the network costs nothing. A thread that computes holds the GIL, and every other thread of the
process has to wait for it: with many of them, all servers get slow.

Whether a thread computes is seen from the CPU time that it has used, so nothing is known of a call's thread at first.
The number of such unknown threads is limited too. The limit doubles with each call that turns out to wait, and falls to
0 with a call that turns out to compute. While a server has calls of both kinds it stays at 1: otherwise each call that
waits would make room for others that compute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WINDOW_SECONDS: Final = 0.04
"""How long a thread is observed before it is judged. A few threads that compute all get the GIL within this time."""

COMPUTING_SHARE: Final = 1 / 8
"""A thread that uses more than this share of the elapsed time computes, if the GIL and the CPUs are not short."""

CROWDED_SHARE: Final = 1 / 20
"""A thread that uses more than this share of the process's CPU time computes, if many threads want the GIL."""

IDLE_SHARE: Final = 1 / 2
"""If the whole process uses less than this share of the elapsed time, any thread that wants the GIL gets it."""

NOTICEABLE_SECONDS: Final = 0.001
"""CPU time up to which a thread does not compute. A call that does nothing costs about as much."""

LATE_FACTOR: Final = 1.5
"""If a look comes later than this many times its interval, the GIL or the CPUs are short. Then a thread that has used
no CPU time may be waiting for the GIL."""

MAX_UNKNOWN: Final = 1024
"""How many unknown threads there may be beyond the limit, for a server whose calls do not compute."""

MIXED_SECONDS: Final = 10.0
"""For this long after a call that computed, there may be only one unknown thread beyond the limit."""

IS_MEASURABLE: Final = hasattr(time, "pthread_getcpuclockid")
"""Whether the system tells a thread's CPU time to other threads. Linux does; macOS and Windows do not."""


@dataclass(slots=True)
class CpuUse:
    """What is known of one thread's work."""

    is_computing: bool | None = None
    """None while it is not known."""
    since: float | None = None
    """When the thread was first looked at in this window."""
    was_crowded: bool = False
    own_at_start: float = 0.0
    process_at_start: float = 0.0

    def restart(self) -> None:
        """Forget what is known: the thread has got other work."""
        self.is_computing = self.since = None


class ComputingBound:
    """Counts the threads that compute. Not safe for threads by itself."""

    def __init__(self, limit: int, look_seconds: float) -> None:
        """`look_seconds`: how often `look` is called while calls wait."""
        self.limit = limit
        """How many threads may compute at once."""
        self._trust = 0
        """How many unknown threads there may be beyond the limit now."""
        self._computed_at = -MIXED_SECONDS
        self._on_time_seconds = look_seconds * LATE_FACTOR
        self._looked_at = 0.0

    def has_room(self, uses: Sequence[CpuUse]) -> bool:
        """Whether one more call may begin beside those that these threads run."""
        if not IS_MEASURABLE:
            return True
        computing = sum(use.is_computing is True for use in uses)
        unknown = sum(use.is_computing is None for use in uses)
        return computing < self.limit and computing + unknown < self.limit + self._trust

    def look(self, threads: Sequence[tuple[int | None, CpuUse]]) -> None:
        """Bring up to date what is known of threads, given by the clocks of their CPU time."""
        now, process_seconds = time.perf_counter(), time.process_time()
        is_late = now - self._looked_at > self._on_time_seconds
        self._looked_at = now
        for clock, use in threads:
            own = _read(clock)
            if own is None:
                continue
            if use.since is None:
                use.since, use.was_crowded = now, False
            else:
                use.was_crowded |= is_late
                used, used_by_all = own - use.own_at_start, process_seconds - use.process_at_start
                passed = now - use.since
                if passed < WINDOW_SECONDS:
                    if not use.was_crowded and used < NOTICEABLE_SECONDS and used_by_all < passed * IDLE_SHARE:
                        self._note(use, is_computing=False)  # the GIL was free, and it did not take it
                    continue
                least = (used_by_all * CROWDED_SHARE) if use.was_crowded else (passed * COMPUTING_SHARE)
                self._note(use, is_computing=used > max(NOTICEABLE_SECONDS, least))
                use.since, use.was_crowded = now, False
            use.own_at_start, use.process_at_start = own, process_seconds

    def note_end(self, use: CpuUse, cpu_seconds: float, seconds: float) -> None:
        """Learn from a call that took `seconds`. Short calls end before anybody has looked at their threads."""
        if use.is_computing is None:
            self._note(use, is_computing=cpu_seconds > max(NOTICEABLE_SECONDS, seconds * COMPUTING_SHARE))

    def _note(self, use: CpuUse, *, is_computing: bool) -> None:
        now = time.monotonic()
        if is_computing:
            self._computed_at = now
        if use.is_computing is None:
            # Only the first judgement of a call counts: what its thread does later says little about the next call.
            most = 1 if now - self._computed_at < MIXED_SECONDS else MAX_UNKNOWN
            self._trust = 0 if is_computing else min(2 * self._trust + 1, most)
        use.is_computing = is_computing


def own_cpu_clock() -> int | None:
    """Return the clock of the calling thread's CPU time; None where the system has none.

    Other threads may read it. Reading the clock of a thread that has ended raises OSError. Asking for the clock of such
    a thread may crash the process, so each thread asks for its own.
    """
    if not IS_MEASURABLE:
        return None
    return time.pthread_getcpuclockid(threading.get_ident())


def _read(clock: int | None) -> float | None:
    if clock is None:
        return None
    try:
        return time.clock_gettime(clock)
    except OSError:  # the thread has ended
        return None
