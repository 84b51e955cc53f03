"""What passed through each server: counters in memory, for figures that are shown live and for the rows of minutes.

Lives here: counting. Not here: the record of single calls (`call_log`), Prometheus' metrics (`metrics`).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

STEPS_PER_DOUBLING: Final = 8
"""Counters of durations are spaced by a factor of 2^(1/8): a percentile is right to 5 %."""

SHORTEST_SECONDS: Final = 1e-5
"""The upper end of the first counter."""

COUNTERS: Final = 232
"""Enough for durations up to an hour and a half."""

WINDOW_SECONDS: Final = 300.0
"""How long names are counted before the counting starts over; the window before is kept too."""

MAX_NAMES: Final = 1000
"""How many names one window tells apart; further ones count as `OTHERS`. Callers choose user names in open mode."""

OTHERS: Final = "(others)"

FAILURES: Final = frozenset({"error", "exception", "timeout"})
"""Outcomes of calls that count as errors."""


def duration_index(seconds: float) -> int:
    """The counter of a duration."""
    if seconds <= SHORTEST_SECONDS:
        return 0
    return min(int(STEPS_PER_DOUBLING * math.log2(seconds / SHORTEST_SECONDS)) + 1, COUNTERS - 1)


def percentiles(counts: Sequence[int], *shares: float) -> list[float | None]:
    """The durations, in seconds, below which these shares of what was counted lie; None if nothing was counted."""
    total = sum(counts)
    if not total:
        return [None] * len(shares)
    found: list[float | None] = []
    for share in shares:
        wanted = share * total
        index = next(index for index, seen in enumerate(accumulate(counts)) if seen >= wanted)
        # The middle of the counter, on its logarithmic scale.
        found.append(SHORTEST_SECONDS * 2 ** ((index - 0.5) / STEPS_PER_DOUBLING))
    return found


class RecentNames:
    """How often each name came up in this window of time and the one before. Written by one thread at a time."""

    __slots__ = ("_current", "_ends_at", "_previous", "_started_at", "since")

    def __init__(self) -> None:
        self._current: dict[str, int] = {}
        self._previous: dict[str, int] = {}
        self._ends_at = time.monotonic() + WINDOW_SECONDS
        self._started_at = time.time()
        self.since = self._started_at
        """The beginning of what is counted (seconds since the epoch)."""

    def note(self, name: str) -> None:
        """Count a name once."""
        if time.monotonic() >= self._ends_at:
            self._turn()
        current = self._current
        if name not in current and len(current) >= MAX_NAMES:
            name = OTHERS
        current[name] = current.get(name, 0) + 1

    def counts(self) -> dict[str, int]:
        """Name -> count. May be called from any thread."""
        # Copied first: copying a dictionary is one step for the interpreter.
        previous, current = self._previous.copy(), self._current.copy()
        now = time.monotonic()
        if now >= self._ends_at + WINDOW_SECONDS:
            return {}
        if now >= self._ends_at:
            return current
        for name, count in current.items():
            previous[name] = previous.get(name, 0) + count
        return previous

    def _turn(self) -> None:
        now = time.monotonic()
        is_recent = now < self._ends_at + WINDOW_SECONDS
        self._previous = self._current if is_recent else {}
        self.since, self._started_at = (self._started_at if is_recent else time.time()), time.time()
        self._current = {}
        self._ends_at = now + WINDOW_SECONDS


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that failed."""

    at: float
    """Seconds since the epoch."""
    tool: str
    outcome: str
    reason: str


class ServerTraffic:
    """The calls of one server.

    Threads: written in the server's lane. Any thread may read; it copies what it reads.
    """

    __slots__ = ("calls", "durations", "errors", "last_failure", "tools")

    def __init__(self) -> None:
        self.calls = 0
        """Calls that have ended, since the start."""
        self.errors = 0
        self.durations = [0] * COUNTERS
        """How many of them took how long: see `duration_index`."""
        self.tools = RecentNames()
        self.last_failure: Failure | None = None

    def note(self, label: str, outcome: str, seconds: float) -> None:
        """Count a call that has ended. `label`: its tool's label in metrics."""
        self.calls += 1
        self.durations[duration_index(seconds)] += 1
        self.tools.note(label)
        if outcome in FAILURES:
            self.errors += 1
