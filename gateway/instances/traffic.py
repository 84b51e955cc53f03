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
"""The length of a window in which names are counted. The window before the present one is kept too."""

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
    """How often each name came up in this window of time and the one before. Written by one thread at a time.

    The windows of all objects begin at the same moments, so that tables of users and of tools count the same calls.
    """

    __slots__ = ("_made_at", "_windows")

    def __init__(self) -> None:
        self._made_at = time.time()
        self._windows: tuple[int, dict[str, int], dict[str, int]] = (_present_window(), {}, {})
        """The number of the newest window with a name, the counts of the one before it, and its own. Replaced in one
        step, so that readers in other threads never see the counts of one window with the number of another."""

    def note(self, name: str) -> None:
        """Count a name once."""
        window, _, counts = self._windows
        present = _present_window()
        if present != window:
            previous = counts if present == window + 1 else {}
            counts = {}
            self._windows = (present, previous, counts)
        if name not in counts and len(counts) >= MAX_NAMES:
            name = OTHERS
        counts[name] = counts.get(name, 0) + 1

    def counts(self) -> dict[str, int]:
        """Name -> count. May be called from any thread."""
        window, previous, current = self._windows
        age = _present_window() - window
        if age > 1:
            return {}
        # Copied first: copying a dictionary is one step for the interpreter.
        counts = current.copy()
        for name, count in previous.items() if age == 0 else ():
            counts[name] = counts.get(name, 0) + count
        return counts

    @property
    def since(self) -> float:
        """The beginning of what is counted (seconds since the epoch)."""
        counted_seconds = time.monotonic() % WINDOW_SECONDS + WINDOW_SECONDS
        return max(self._made_at, time.time() - counted_seconds)


def _present_window() -> int:
    return int(time.monotonic() // WINDOW_SECONDS)


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
