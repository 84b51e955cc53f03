"""What a process sees of its own troubles, for alerts."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from gateway import metrics
from gateway.alerts.troubles import Troubles
from gateway.host import troubles
from gateway.host.troubles import TroubleWatch


def watch_host(**parts: Any) -> TroubleWatch:
    """The watch of a host that is well, but for these parts."""
    well: dict[str, Any] = {
        "registry": SimpleNamespace(failures=[]),
        "lane_watch": SimpleNamespace(blocked_servers=[]),
        "recorder": SimpleNamespace(lacks_migrations=False, last_flush=time.monotonic(), last_error=""),
    }
    return TroubleWatch(**{**well, **parts})


def test_host_that_is_well_has_no_troubles() -> None:
    assert watch_host().look() == Troubles()


def test_failed_and_blocked_servers_and_a_late_database_are_troubles() -> None:
    failures = [SimpleNamespace(name=name) for name in ("b", "a", "a")]
    found = watch_host(
        registry=SimpleNamespace(failures=failures),
        lane_watch=SimpleNamespace(blocked_servers=["slow"]),
        recorder=SimpleNamespace(lacks_migrations=False, last_flush=time.monotonic(), last_error="OperationalError"),
    ).look()
    assert (found.failed_servers, found.blocked_servers) == (("a", "b"), ("slow",))
    assert "rows have not been written for 0 s (OperationalError)" in found.database


def test_refusals_of_the_last_minute_are_counted_and_older_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(troubles, "time", SimpleNamespace(monotonic=lambda: now))
    watch = watch_host()
    metrics.refused_requests.labels("rate_limit").inc(5)  # before the first look
    assert watch.look().refusals == {}
    for _ in range(3):
        now += 20
        metrics.refused_requests.labels("rate_limit").inc(2)
        metrics.refused_requests.labels("unknown_session").inc(100)
        refusals = watch.look().refusals
    assert refusals == {"rate_limit": 6}
    now += 39
    assert watch.look().refusals == {"rate_limit": 2}
    now += 61
    assert watch.look().refusals == {}
