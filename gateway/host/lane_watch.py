"""Notices lanes that are blocked and calls that are stuck, and tells operators which call it is.

A lane is the thread and event loop that one server runs in (`instances.lanes`).
"""

import logging
from typing import Final

from gateway import metrics
from gateway.instances.calls import ServerCalls
from gateway.instances.instances import Instances
from gateway.instances.lanes import Lane, Lanes

logger = logging.getLogger(__name__)

BLOCKED_SECONDS: Final = 1.0
"""How long a lane may leave a probe unanswered before its server counts as blocked."""


class LaneWatch:
    """Watches the lanes of one host. Used on the host's loop."""

    def __init__(self, lanes: Lanes, instances: Instances) -> None:
        self._lanes = lanes
        self._instances = instances
        self._reported: set[str] = set()
        """Servers whose present block has been logged and counted."""

    @property
    def blocked_servers(self) -> list[str]:
        """Servers whose lane does not answer, by name."""
        return sorted(lane.name for lane in self._lanes if lane.blocked_seconds >= BLOCKED_SECONDS)

    def look(self) -> dict[str, str]:
        """Probe every lane once. Returns what is wrong, by server. Call it regularly."""
        conditions: dict[str, str] = {}
        calls_by_server = {calls.server_name: calls for calls in self._instances.calls}
        for lane in self._lanes:
            lane.probe()
            calls = calls_by_server.get(lane.name)
            texts = [] if calls is None else [*self._look_at_block(lane, calls), *_stuck_calls(calls)]
            if texts:
                conditions[lane.name] = "; ".join(texts)
        return conditions

    def _look_at_block(self, lane: Lane, calls: ServerCalls) -> list[str]:
        seconds = lane.blocked_seconds
        if seconds < BLOCKED_SECONDS:
            self._reported.discard(lane.name)
            return []
        call = calls.blocking(lane.loop)
        name, label = (call.name, call.label) if call is not None else ("its code", "its code")
        if lane.name not in self._reported:
            self._reported.add(lane.name)
            metrics.lane_blocks.labels(lane.name, label).inc()
            logger.warning(
                "Server %s: %s blocks its event loop (for %.1f s so far); all of its users wait",
                lane.name,
                name,
                seconds,
            )
        return [f"Blocked for {seconds:.0f} s by {name}"]


def _stuck_calls(calls: ServerCalls) -> list[str]:
    stuck = calls.stuck
    return [f"{stuck} calls are stuck: they were given up and have not returned"] if stuck else []
