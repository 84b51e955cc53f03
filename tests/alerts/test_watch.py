"""Several processes that watch for alerts with one database, and one that cannot reach it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.utils import timezone

from gateway.alerts import outage, watch
from gateway.alerts.delivery import DeliveryError, Outgoing
from gateway.alerts.models import Alert, AlertDestination, AlertMessage, AlertNotice, ProcessTroubles
from gateway.alerts.sender import Done, Sender
from gateway.alerts.troubles import Troubles
from gateway.alerts.watch import AlertWatch
from gateway.records.models import HostProcess
from tests.support.processes import until

pytestmark = pytest.mark.django_db

LATE = Troubles(database="rows have not been written for 12 s (OperationalError), so lists and history are late")


class SentAtOnce(Sender):
    """Sends in the thread of the test."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Outgoing] = []
        self.error = ""

    def start(self, message: Outgoing, done: Done) -> None:
        self.sent.append(message)
        done(message, self.error)

    def said(self) -> list[tuple[str, str]]:
        return [(item["state"], item["subject"]) for message in self.sent for item in message.items]


class Process:
    """A process with its row and its watch."""

    def __init__(self, alive: list[HostProcess], started_at: datetime) -> None:
        self.row = HostProcess(id=uuid4(), hostname="h", pid=1, started_at=started_at, last_seen_at=started_at)
        alive.append(self.row)
        self.troubles = Troubles()
        self.sender = SentAtOnce()
        self.watch = AlertWatch(self.row.id, lambda: self.troubles, lambda: alive, self.sender)

    def round(self) -> None:
        self.watch.keep_up()
        self.watch.run_round()


Start = Callable[[], Process]


@pytest.fixture
def alive() -> list[HostProcess]:
    return []


@pytest.fixture
def start(alive: list[HostProcess], settings: Any) -> Start:
    """Start a process; the first one is the lead."""
    settings.GUMCP_ALERT_AFTER_SECONDS = settings.GUMCP_ALERT_CALM_SECONDS = 0.0
    AlertDestination.objects.create(name="pager", url="https://example.com/in")
    AlertDestination.objects.create(name="keys", url="https://example.com/in", events=["key_expires"])
    return lambda: Process(alive, timezone.now())


def test_one_of_several_processes_tells_what_is_wrong_in_any_of_them_once(start: Start) -> None:
    lead, other = start(), start()
    other.troubles = Troubles(blocked_servers=("notes",))
    for _ in range(3):
        lead.round()
        other.round()
    assert lead.sender.said() == [("begun", "notes")]
    assert other.sender.sent == []
    other.troubles = Troubles()
    for _ in range(3):
        other.round()
        lead.round()
    assert lead.sender.said() == [("begun", "notes"), ("ended", "notes")]


def test_next_process_goes_on_when_the_lead_drains_or_dies(start: Start, alive: list[HostProcess]) -> None:
    lead, second, third = start(), start(), start()
    third.troubles = Troubles(failed_servers=("notes",))
    third.round()
    lead.round()
    assert lead.sender.said() == [("begun", "notes")]
    lead.row.is_draining = True
    third.troubles = Troubles()
    for process in (lead, third, second):
        process.round()
    assert second.sender.said() == [("ended", "notes")]
    second.troubles = Troubles(failed_servers=("time",))
    second.round()
    second.round()
    alive.remove(second.row)  # and with it what it said
    third.round()
    assert third.sender.said() == [("ended", "time")]


def test_result_of_an_attempt_is_written_in_the_next_round(start: Start) -> None:
    process = start()
    process.troubles = Troubles(failed_servers=("notes",))
    process.sender.error = "The receiver answered with status 500."
    process.round()
    process.round()
    (message,) = AlertMessage.objects.all()
    assert (message.state, message.error, message.attempts) == ("waiting", process.sender.error, 1)
    AlertMessage.objects.update(next_attempt_at=timezone.now())
    process.sender.error = ""
    process.round()
    process.watch.run_round(is_last=True)
    assert AlertMessage.objects.get().state == "sent"


def test_process_without_a_row_does_nothing() -> None:
    AlertWatch(uuid4(), Troubles, list).run_round()
    assert not ProcessTroubles.objects.exists()


def test_rows_of_dead_processes_and_old_alerts_are_deleted(start: Start) -> None:
    old = timezone.now() - timedelta(days=40)
    Alert.objects.create(event="server_failed", subject="x", text="x", began_at=old, ended_at=old)
    ProcessTroubles.objects.create(process_id=UUID(int=7))
    process = start()
    process.round()
    assert not Alert.objects.exists()
    assert list(ProcessTroubles.objects.values_list("process_id", flat=True)) == [process.row.id]


# -- A database that is away -----------------------------------------------------------------------------------------


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is told of as soon as a round is late by anything."""
    monkeypatch.setattr(watch, "ROUND_SECONDS", 0.0)


@pytest.mark.usefixtures("_quick")
def test_outage_is_told_without_the_database_and_its_end_with_it(start: Start) -> None:
    lead, other = start(), start()
    for process in (lead, other):
        process.round()
        process.troubles = LATE
    for _ in range(3):  # no round can be run
        lead.watch.keep_up()
        other.watch.keep_up()
    assert lead.sender.said() == [("begun", "database")]
    assert "rows have not been written for 12 s" in lead.sender.sent[0].items[0]["text"]
    assert other.sender.sent == []
    for process in (lead, other):
        process.troubles = Troubles()
        process.round()
    lead.round()
    assert lead.sender.said() == [("begun", "database"), ("ended", "database")]
    alert = Alert.objects.get()
    assert alert.ended_at is not None
    assert AlertNotice.objects.get().destination.name == "pager"
    lead.round()
    assert len(lead.sender.sent) == 2


@pytest.mark.usefixtures("_quick")
def test_outage_that_cannot_be_told_is_tried_again_and_leaves_no_row(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage.outbox, "RETRY_SECONDS", (3600,))
    lead = start()
    lead.round()
    lead.troubles, lead.sender.error = LATE, "The receiver refused the connection."
    for _ in range(3):
        lead.watch.keep_up()
    assert len(lead.sender.sent) == 1
    lead.troubles, lead.sender.error = Troubles(), ""
    lead.round()
    lead.round()
    assert len(lead.sender.sent) == 1
    assert not Alert.objects.exists()


def test_sender_tells_how_an_attempt_ended_from_its_own_thread() -> None:
    results: list[Any] = []

    def fail(message: Outgoing) -> None:
        raise DeliveryError("No.")

    message = Outgoing(uuid4(), 1, "webhook", "", [], "", [], timezone.now())
    Sender(fail).start(message, lambda *result: results.append(result))
    until(lambda: results)
    assert results == [(message, "No.")]
