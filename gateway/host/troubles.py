"""What is wrong in this process, for alerts. Everything comes from memory."""

import time
from collections import Counter, deque
from typing import Final

from gateway import metrics
from gateway.alerts.troubles import Troubles
from gateway.catalog.registry import Registry
from gateway.host.database_state import database_state
from gateway.host.lane_watch import LaneWatch
from gateway.records.recorder import Recorder
from gateway.storable import storable

WINDOW_SECONDS: Final = 60.0

USUAL_REFUSALS: Final = frozenset({"unknown_session", "unknown_event"})
"""What clients are answered after a restart, before they open a new session. It is not counted."""


class TroubleWatch:
    """Looks at one host. Used on its loop."""

    def __init__(self, registry: Registry, lane_watch: LaneWatch, recorder: Recorder) -> None:
        self._registry = registry
        self._lane_watch = lane_watch
        self._recorder = recorder
        self._counts: deque[tuple[float, Counter[str]]] = deque()
        """Refused requests since the start, by reason, at moments of the last minute (monotonic seconds)."""

    def look(self) -> Troubles:
        """What is wrong now."""
        return Troubles(
            # As rows have them: a subject is looked for in rows.
            failed_servers=tuple(sorted({storable(failure.name, 255) for failure in self._registry.failures})),
            blocked_servers=tuple(self._lane_watch.blocked_servers),
            database=database_state(self._recorder),
            refusals=self._refusals(),
        )

    def _refusals(self) -> dict[str, int]:
        now = time.monotonic()
        counts = _refused_so_far()
        self._counts.append((now, counts))
        while now - self._counts[0][0] > WINDOW_SECONDS:
            self._counts.popleft()
        return dict(counts - self._counts[0][1])


def _refused_so_far() -> Counter[str]:
    (family,) = metrics.refused_requests.collect()
    return Counter(
        {
            sample.labels["reason"]: int(sample.value)
            for sample in family.samples
            if sample.name.endswith("_total") and sample.labels["reason"] not in USUAL_REFUSALS
        }
    )
