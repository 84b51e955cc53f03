"""What is wrong in this process, for alerts. Everything comes from memory."""

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from gateway import metrics
from gateway.alerts.troubles import Troubles
from gateway.host.state import database_state
from gateway.storable import storable

if TYPE_CHECKING:
    from gateway.host.host import Host

WINDOW_SECONDS: Final = 60.0

USUAL_REFUSALS: Final = frozenset({"unknown_session", "unknown_event"})
"""What clients are answered after a restart, before they open a new session. It is not counted."""


class TroubleWatch:
    """Looks at one host. Used on its loop."""

    def __init__(self, host: "Host") -> None:
        self._host = host
        self._counts: deque[tuple[float, Counter[str]]] = deque()
        """Refused requests since the start, by reason, at moments of the last minute (monotonic seconds)."""

    def look(self) -> Troubles:
        """What is wrong now."""
        host = self._host
        return Troubles(
            # As rows have them: a subject is looked for in rows.
            failed_servers=tuple(sorted({storable(failure.name, 255) for failure in host.registry.failures})),
            blocked_servers=tuple(host.lane_watch.blocked_servers),
            database=database_state(host.recorder),
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
