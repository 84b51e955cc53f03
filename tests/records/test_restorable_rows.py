"""The rows by which sessions go on in other processes: who gets one, and when they are deleted."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.utils import timezone

from gateway.records import restorable_rows
from gateway.records.models import HostProcess, RestorableSession, SessionRecord
from gateway.records.restorable_rows import RestorableRows
from gateway.records.upkeep import hostname

pytestmark = pytest.mark.django_db

FIRST, SECOND = uuid4(), uuid4()


def session(name: str = "a", **fields: Any) -> RestorableSession:
    values: dict[str, Any] = {
        "id_digest": f"id-{name}",
        "caller_digest": "ada",
        "transport": "streamable-http",
        "initialize": "{}",
        "protocol_version": "2025-11-25",
        "last_used_at": timezone.now(),
    }
    return RestorableSession(id=uuid4(), **{**values, **fields})


def written(*rows: RestorableSession, holder: UUID = FIRST) -> RestorableRows:
    RestorableRows(holder).write(rows)
    return RestorableRows(SECOND)


def test_session_is_taken_with_what_was_written_of_it() -> None:
    row = session(initialize='{"clientInfo": {"name": "é"}}', log_level="error", subscriptions='["note://1"]')
    kept = written(row).take(["other", "id-a"], ["ada"], 60)
    assert kept is not None
    assert (kept.row_id, kept.epoch, kept.log_level, kept.subscriptions) == (row.id, 2, "error", ("note://1",))
    assert "é" in kept.initialize.decode()
    assert RestorableRows(FIRST).taken_by_others(60) == {row.id: 2}
    assert RestorableRows(SECOND).taken_by_others(60) == {}


def test_process_that_lost_a_session_can_write_what_it_said_and_not_take_it_back_by_that() -> None:
    row = session()
    written(row).take(["id-a"], ["ada"], 60)
    row.epoch = 1
    RestorableRows(FIRST).write([row])
    (found,) = RestorableSession.objects.all()
    assert (found.holder, found.epoch) == (SECOND, 2)


@pytest.mark.parametrize("ids", [["id-b"], []])
def test_unknown_session_is_not_found(ids: list[str]) -> None:
    assert written(session()).take(ids, ["ada"], 60) is None


def test_session_of_somebody_else_or_of_the_other_transport_is_not_found() -> None:
    rows = written(session("a"), session("b", transport="sse"))
    assert rows.take(["id-a"], ["bob"], 60) is None
    assert rows.take(["id-b"], ["ada"], 60) is None


def test_session_that_was_idle_too_long_is_over() -> None:
    rows = written(session(last_used_at=timezone.now() - timedelta(seconds=61)))
    assert rows.take(["id-a"], ["ada"], 60) is None
    assert not RestorableSession.objects.exists()


def test_session_that_an_operator_ended_after_its_process_died_is_over() -> None:
    row = session()
    rows = written(row)
    now = timezone.now()
    process = HostProcess.objects.create(hostname="h", pid=1, started_at=now, last_seen_at=now)
    SessionRecord.objects.create(
        id=row.id, process=process, server_name="w", user_id="ada", opened_at=now, last_activity_at=now,
        state="open", is_end_requested=True,
    )  # fmt: skip
    assert rows.take(["id-a"], ["ada"], 60) is None
    assert not RestorableSession.objects.exists()


def test_counts_of_a_session_go_on() -> None:
    row = session()
    rows = written(row)
    opened = timezone.now() - timedelta(hours=1)
    process = HostProcess.objects.create(hostname="h", pid=1, started_at=opened, last_seen_at=opened)
    SessionRecord.objects.create(
        id=row.id, process=process, server_name="w", user_id="ada", opened_at=opened, last_activity_at=opened,
        state="lost", calls=7, messages_in=9, messages_out=8,
    )  # fmt: skip
    kept = rows.take(["id-a"], ["ada"], 60)
    assert kept is not None
    assert (kept.calls, kept.messages_in, kept.messages_out, kept.opened_at) == (7, 9, 8, opened)


def test_newest_lost_session_of_the_same_program_is_adopted_once() -> None:
    old, new, other = (
        session(name, transport="sse", caller_digest=caller, last_used_at=timezone.now() - timedelta(seconds=age))
        for name, caller, age in (("old", "ada", 20), ("new", "ada", 10), ("other", "ada with curl", 0))
    )
    old.log_level, new.log_level = "error", "debug"
    rows = written(old, new, other)
    rows.note_lost([old.id])
    rows.note_lost([new.id])
    assert [kept.log_level for _ in range(2) if (kept := rows.adopt(["ada"], [], 60))] == ["debug", "error"]
    assert rows.adopt(["ada"], [], 60) is None
    assert RestorableSession.objects.get() == other


def test_session_of_a_dead_process_is_lost_and_that_of_a_living_one_is_copied() -> None:
    now = timezone.now()
    dead = HostProcess.objects.create(hostname=hostname(), pid=2**22 + 1, started_at=now, last_seen_at=now)
    alive = HostProcess.objects.create(hostname="elsewhere", pid=1, started_at=now, last_seen_at=now)
    written(session("dead", transport="sse", log_level="error"), holder=dead.id)
    rows = written(session("alive", transport="sse", log_level="debug"), holder=alive.id)
    first, *later = [rows.adopt(["ada"], [], 60) for _ in range(3)]
    assert first is not None
    assert first.log_level == "error"
    assert [kept.log_level for kept in later if kept] == ["debug", "debug"]


def test_lost_sessions_of_a_caller_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restorable_rows, "MAX_LOST_OF_CALLER", 3)
    many = [session(str(number), transport="sse") for number in range(5)]
    rows = written(*many, session("of bob", transport="sse", caller_digest="bob"))
    for row in many:
        rows.note_lost([row.id])
    left = RestorableSession.objects.filter(caller_digest="ada").values_list("id", flat=True)
    assert set(left) == {row.id for row in many[2:]}
    assert RestorableSession.objects.filter(caller_digest="bob").exists()


def test_unused_rows_are_deleted() -> None:
    rows = written(session("a", last_used_at=timezone.now() - timedelta(seconds=61)), session("b"))
    rows.delete_unused(60)
    assert [row.id_digest for row in RestorableSession.objects.all()] == ["id-b"]


def test_row_that_cannot_be_written_keeps_no_other_out() -> None:
    first = session("a")
    written(first)
    written(session("a"), session("b"))
    assert {row.id_digest for row in RestorableSession.objects.all()} == {"id-a", "id-b"}


def test_thousand_sessions_are_written_in_a_few_statements(django_assert_max_num_queries: Any) -> None:
    rows = RestorableRows(FIRST)
    with django_assert_max_num_queries(20):
        rows.write([session(str(number)) for number in range(1000)])
    ids = list(RestorableSession.objects.values_list("id", flat=True))
    with django_assert_max_num_queries(6):
        rows.touch(ids)
