"""How much a fault test does, and what it measured: the figures of `docs/evidence.md`.

In CI every test is small. `FAULT_TESTS=full` (`make faults`) gives each the size that the documentation names.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

import psutil

IS_FULL: Final = os.environ.get("FAULT_TESTS") == "full"

MIB: Final = 1024 * 1024

Record = Callable[..., None]


def size(in_ci: int, full: int) -> int:
    """How many of something a test uses."""
    return full if IS_FULL else in_ci


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def milliseconds(values: list[float]) -> str:
    """Latencies as a reader wants them."""
    return f"p50 {percentile(values, 50) * 1000:.0f} ms, p99 {percentile(values, 99) * 1000:.0f} ms (of {len(values)})"


def is_no_more_than(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether nothing is left of what came after `before`, in which something may still have been on its way out."""
    return all(
        now[name] <= count
        if isinstance(count, int)
        else all(now[name].get(lane, 0) <= tasks for lane, tasks in count.items()) and now[name].keys() <= count.keys()
        for name, count in before.items()
    )


class Watched:
    """A process seen from outside."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    @property
    def mib(self) -> float:
        """What it holds for itself alone."""
        return float(self._process.memory_full_info().uss) / MIB

    @property
    def cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    @property
    def descriptors(self) -> int:
        return int(self._process.num_fds())

    @property
    def threads(self) -> int:
        return int(self._process.num_threads())

    def peak_mib_while(self, condition: Callable[[], Any], seconds: float) -> float:
        """The most it holds while `condition` is true, looked at now and then."""
        peak, end = self.mib, time.monotonic() + seconds
        while condition() and time.monotonic() < end:
            time.sleep(0.05)
            peak = max(peak, self.mib)
        return peak
