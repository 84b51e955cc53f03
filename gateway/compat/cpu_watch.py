"""Tells which of some threads compute and which wait for something, from the CPU time that each has used.

A thread that waits for the network costs nothing. A thread that computes holds the GIL, for which every other thread of
the process then has to wait: with many of them, all servers get slow.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

WINDOW_SECONDS: Final = 0.04
"""How long a thread is looked at. Within it, each of a few threads that compute gets the GIL at least once."""

COMPUTING_SHARE: Final = 0.05
"""Share of the process's CPU time from which on a thread computes."""

NOTICEABLE_SECONDS: Final = 0.001
"""CPU time that does not count: less than a call costs that does nothing."""

LATE_FACTOR: Final = 1.5
"""A look that is later than that says that the GIL or the CPUs are short, so threads that did nothing may want to."""


@dataclass(slots=True)
class CpuUse:
    """What is known of one thread's work. Until enough is known, the thread counts as computing."""

    is_computing: bool = True
    since: float | None = None
    own_at_start: float = 0.0
    process_at_start: float = 0.0

    def restart(self) -> None:
        """Forget what is known: the thread has got other work."""
        self.is_computing = True
        self.since = None


class CpuWatch:
    """Looks at threads again and again. Used in one thread."""

    def __init__(self, look_seconds: float) -> None:
        """`look_seconds`: how often `look` is called while calls wait."""
        self._on_time_seconds = look_seconds * LATE_FACTOR
        self._looked_at = 0.0

    def look(self, threads: Iterable[tuple[int | None, CpuUse]]) -> None:
        """Bring up to date what is known of threads, given by their ids."""
        now, process_seconds = time.perf_counter(), time.process_time()
        is_on_time = now - self._looked_at < self._on_time_seconds
        self._looked_at = now
        for thread_id, use in threads:
            own = _thread_seconds(thread_id)
            if own is None:
                use.is_computing = False
            elif use.since is None:
                use.since, use.own_at_start, use.process_at_start = now, own, process_seconds
            elif now - use.since >= WINDOW_SECONDS:
                used, of_process = own - use.own_at_start, process_seconds - use.process_at_start
                use.is_computing = used > max(NOTICEABLE_SECONDS, COMPUTING_SHARE * of_process)
                use.since, use.own_at_start, use.process_at_start = now, own, process_seconds
            elif is_on_time and own - use.own_at_start < NOTICEABLE_SECONDS:
                use.is_computing = False  # it could compute if it wanted to


def _thread_seconds(thread_id: int | None) -> float | None:
    """Return the CPU time of a thread; None where the system does not say, or the thread has not started."""
    if thread_id is None or not hasattr(time, "pthread_getcpuclockid"):
        return None
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread_id))
    except OSError:  # the thread has ended
        return None
