"""One set of metrics for several processes: true sums, whose counters never fall.

Workers answer with snapshots of their registries. The counters of a worker that has died stay in the sum: if the sum
dropped, Prometheus would take that for a restart of the host. Its gauges are removed.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_GONE_WITH_THEIR_PROCESS: Final = frozenset({"gauge", "info", "unknown", "stateset"})
_NOT_SUMMED: Final = ("_created",)
_GREATEST: Final = ("python_", "gumcp_build_info", "gumcp_load_failures_servers", "gumcp_lane_lag_seconds")
"""Gauges, by the beginning of their names, whose sum would mean nothing. The greatest of all workers is shown."""

_LEAST: Final = ("process_start_time_seconds",)
"""The same, where the least value is shown."""

Snapshot = list[Any]
"""A registry as JSON: `[name, help, type, [[sample name, labels, value], …]]` for each metric."""


def take_snapshot(registry: Collector | CollectorRegistry) -> Snapshot:
    """The present values of a registry."""
    return [
        [
            metric.name,
            metric.documentation,
            metric.type,
            [
                [sample.name, sample.labels, sample.value]
                for sample in metric.samples
                if not sample.name.endswith(_NOT_SUMMED)
            ],
        ]
        for metric in registry.collect()
    ]


class MergedMetrics(Collector):
    """The sums over workers, the dead ones included.

    Threads: the supervisor's main thread updates it, and the metrics port's threads collect.
    """

    def __init__(self, refresh: Callable[[], object] = lambda: None) -> None:
        """`refresh` is called before each collection, to bring the snapshots up to date."""
        self._refresh = refresh
        self._lock = threading.Lock()
        self._latest: dict[int, Snapshot] = {}
        """Process id -> its newest snapshot."""
        self._dead: dict[tuple[str, str, tuple[tuple[str, str], ...]], float] = {}
        self._descriptions: dict[str, tuple[str, str]] = {}

    def update(self, pid: int, snapshot: Snapshot) -> None:
        """Take a worker's newest snapshot."""
        with self._lock:
            self._latest[pid] = snapshot

    def bury(self, pid: int) -> None:
        """Keep what a worker that has ended had counted."""
        with self._lock:
            for name, documentation, kind, samples in self._latest.pop(pid, []):
                self._descriptions[name] = (documentation, kind)
                if kind not in _GONE_WITH_THEIR_PROCESS:
                    for sample_name, labels, value in samples:
                        key = (name, sample_name, tuple(sorted(labels.items())))
                        self._dead[key] = self._dead.get(key, 0.0) + value

    def collect(self) -> Iterator[Metric]:
        """Yield the sums."""
        self._refresh()
        with self._lock:
            sums, latest = dict(self._dead), list(self._latest.values())
        for snapshot in latest:
            for name, documentation, kind, samples in snapshot:
                self._descriptions[name] = (documentation, kind)
                for sample_name, labels, value in samples:
                    key = (name, sample_name, tuple(sorted(labels.items())))
                    if key not in sums:
                        sums[key] = value
                    elif kind not in _GONE_WITH_THEIR_PROCESS or not name.startswith((*_GREATEST, *_LEAST)):
                        sums[key] += value
                    else:
                        sums[key] = (max if name.startswith(_GREATEST) else min)(sums[key], value)
        yield from _as_metrics(sums, self._descriptions)

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before there are workers."""
        return []


def _as_metrics(
    sums: dict[tuple[str, str, tuple[tuple[str, str], ...]], float], descriptions: dict[str, tuple[str, str]]
) -> Iterator[Metric]:
    metrics: dict[str, Metric] = {}
    for (name, sample_name, labels), value in sums.items():
        if name not in metrics:
            documentation, kind = descriptions[name]
            metrics[name] = Metric(name, documentation, kind)
        metrics[name].add_sample(sample_name, dict(labels), value)
    return iter(metrics.values())
