"""What is counted of calls in memory, the samples of the last hour, and the rows of minutes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import OperationalError
from django.utils import timezone

from gateway.instances import traffic
from gateway.instances.call_log import Call, CallLog
from gateway.instances.traffic import OTHERS, RecentNames, ServerTraffic, duration_index, percentiles
from gateway.records import history
from gateway.records.history import History
from gateway.records.models import MinuteRecord


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 60_000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(history, "time", clock)
    monkeypatch.setattr(traffic, "time", clock)
    return clock


@pytest.mark.parametrize("seconds", [0.0001, 0.003, 0.25, 7.0, 900.0])
def test_percentile_is_right_to_five_percent(seconds: float) -> None:
    counted = ServerTraffic()
    for outcome in ("ok", "ok", "ok", "error"):
        counted.note("echo", outcome, seconds)
    (p50,) = percentiles(counted.durations, 0.5)
    assert p50 == pytest.approx(seconds, rel=0.05)


def test_durations_beyond_the_counters_are_counted_in_the_outermost() -> None:
    assert (duration_index(0.0), duration_index(1e9)) == (0, traffic.COUNTERS - 1)
    assert percentiles([0] * traffic.COUNTERS, 0.5, 0.99) == [None, None]


def test_percentiles_tell_the_slow_from_the_usual() -> None:
    counted = ServerTraffic()
    for number in range(100):
        counted.note("echo", "ok", 0.01 if number < 94 else 1.0)
    p50, p95 = percentiles(counted.durations, 0.5, 0.95)
    assert p50 == pytest.approx(0.01, rel=0.05)
    assert p95 == pytest.approx(1.0, rel=0.05)


def test_names_are_counted_in_two_windows_and_bounded(clock: Clock) -> None:
    names = RecentNames()
    for number in range(traffic.MAX_NAMES + 5):
        names.note(f"user-{number}")
    assert names.counts()[OTHERS] == 5
    clock.now += 300
    names.note("user-0")
    assert names.counts()["user-0"] == 2
    clock.now += 300
    names.note("user-1")
    assert names.counts() == {"user-0": 1, "user-1": 1}
    clock.now += 3000
    assert names.counts() == {}


def call(log: CallLog, server: str = "workshop", outcome: str = "ok", seconds: float = 0.01) -> None:
    log.note(log.traffic(server), Call(server, "echo", "ada", outcome=outcome, seconds=seconds), "echo")


def test_users_and_tools_are_counted_over_the_same_time(clock: Clock) -> None:
    log = CallLog()
    call(log)
    clock.now += 200
    call(log, "kitchen")  # whose first call comes later than the first window's beginning
    clock.now += 200
    call(log)
    call(log, "kitchen")
    for _ in range(3):
        of_tools = sum(sum(found.tools.counts().values()) for found in log.traffics().values())
        assert sum(log.users.counts().values()) == of_tools
        clock.now += 150


def test_sample_says_what_happened_since_the_last_one(clock: Clock) -> None:
    log = CallLog()
    past = History(log, ["a session"])
    for _ in range(40):
        call(log)
    call(log, "kitchen", "error")
    clock.now += 5
    past.keep_up()
    assert past.samples() == []
    clock.now += 5
    past.keep_up()
    (sample,) = past.samples()
    assert (sample.calls_per_second, sample.errors_per_second, sample.sessions) == (4.1, 0.1, 1)
    assert sample.p95_ms == pytest.approx(10, rel=0.05)
    assert sample.memory_bytes > 1_000_000
    clock.now += 10
    past.keep_up()
    assert (past.samples()[-1].calls_per_second, past.samples()[-1].p95_ms) == (0.0, None)


def test_figures_of_a_server_are_those_of_the_last_minute(clock: Clock) -> None:
    log = CallLog()
    past = History(log, [])
    call(log, outcome="error", seconds=2.0)
    clock.now += 10
    past.keep_up()
    figures = past.server_figures()["workshop"]
    assert (figures.errors, figures.calls_per_second) == (1, 0.1)
    assert figures.p50_ms == pytest.approx(2000, rel=0.05)
    for _ in range(7):
        clock.now += 10
        past.keep_up()
    assert past.server_figures()["workshop"] == (0.0, 0, None, None)


@pytest.mark.django_db
def test_each_minute_becomes_a_row_also_when_the_database_was_away(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, process_id = CallLog(), uuid4()
    past = History(log, [])
    call(log)
    clock.now += 60
    past.keep_up()
    call(log, outcome="timeout")
    call(log)
    clock.now += 60
    past.keep_up()

    def fail(*arguments: Any) -> None:
        raise OperationalError("locked")

    with monkeypatch.context() as patched:
        patched.setattr(MinuteRecord.objects, "bulk_create", fail)
        with pytest.raises(OperationalError):
            past.write_minutes(process_id)
    past.write_minutes(process_id)
    rows = list(MinuteRecord.objects.order_by("at").values_list("at", "calls", "errors", "process_id"))
    assert [(at.timestamp(), *others) for at, *others in rows] == [
        (60_000.0, 1, 0, process_id),
        (60_060.0, 2, 1, process_id),
    ]


@pytest.mark.django_db
def test_rows_of_minutes_are_kept_for_seven_days() -> None:
    past = History(CallLog(), [])
    past.end_minute()
    past.write_minutes(uuid4())
    past.delete_old_minutes()
    assert MinuteRecord.objects.count() == 1
    MinuteRecord.objects.update(at=timezone.now() - timedelta(days=7, minutes=1))
    past.delete_old_minutes()
    assert not MinuteRecord.objects.exists()
