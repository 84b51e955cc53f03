"""How long tests wait for what the host promises.

Tests run beside other tests, on machines that pause. So the bound of a test tells a host that does something in time
from one that never does it, and no more. With TEST_DEADLINES=exact, as `make promises` sets it on a quiet machine,
every promise is held to the second.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

IS_EXACT: Final = os.environ.get("TEST_DEADLINES") == "exact"

WAIT_SECONDS: Final = 10.0
"""How long anything may take that is expected to happen and has no time of its own."""

SLACK_SECONDS: Final = 8.0
"""What a busy machine may add. What would end a wait in another way (a grace period, a long sleep) takes longer."""


LATENCY_SLACK_SECONDS: Final = 1.0
"""The same for the latency of one call among many: less than any block that the others must not feel."""


def within(seconds: float) -> float:
    """Return how long a test waits for something that the host promises within `seconds`."""
    return seconds if IS_EXACT else seconds + SLACK_SECONDS


def are_quick(latencies: Sequence[float], p99_seconds: float) -> bool:
    """Tell whether calls were answered as quickly as promised, while something else was blocked or slow.

    On a busy machine the median stands for all of them: it is high if calls wait for what is blocked.
    """
    ordered = sorted(latencies)
    if IS_EXACT:
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] < p99_seconds
    return ordered[len(ordered) // 2] < p99_seconds + LATENCY_SLACK_SECONDS
