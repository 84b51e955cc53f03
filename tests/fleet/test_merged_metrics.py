"""Sums over workers: true while they live, and never lower when one has died."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.fleet.merged_metrics import MergedMetrics, take_snapshot


def worker(calls: int, streams: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("calls_total", "Calls", ["server"], registry=registry).labels("notes").inc(calls)
    Gauge("streams", "Streams", registry=registry).set(streams)
    Histogram("seconds", "Seconds", registry=registry, buckets=(1, 2)).observe(calls)
    return registry


def values(merged: MergedMetrics) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(merged)
    lines = generate_latest(registry).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_sums_are_of_all_workers() -> None:
    merged = MergedMetrics()
    merged.update(1, take_snapshot(worker(1, 5)))
    merged.update(2, take_snapshot(worker(2, 7)))
    found = values(merged)
    assert found['calls_total{server="notes"}'] == 3
    assert found["streams"] == 12
    assert found['seconds_bucket{le="1.0"}'] == 1
    assert found["seconds_count"] == 2


def test_gauges_whose_sum_says_nothing_are_the_greatest_or_the_least() -> None:
    merged = MergedMetrics()
    for pid, value in ((1, 3), (2, 5)):
        registry = CollectorRegistry()
        for name in ("gumcp_lane_lag_seconds", "gumcp_load_failures_servers", "process_start_time_seconds"):
            Gauge(name, "A gauge", registry=registry).set(value)
        Gauge("gumcp_build_info", "Versions", ["version"], registry=registry).labels("2.0.0").set(1)
        merged.update(pid, take_snapshot(registry))
    assert values(merged) == {
        "gumcp_lane_lag_seconds": 5,
        "gumcp_load_failures_servers": 5,
        "process_start_time_seconds": 3,
        'gumcp_build_info{version="2.0.0"}': 1,
    }


def test_what_a_dead_worker_counted_stays_and_its_gauges_go() -> None:
    merged = MergedMetrics()
    merged.update(1, take_snapshot(worker(4, 5)))
    merged.update(2, take_snapshot(worker(2, 7)))
    merged.bury(1)
    merged.update(3, take_snapshot(worker(1, 1)))
    found = values(merged)
    assert found['calls_total{server="notes"}'] == 7
    assert found["streams"] == 8
