"""Rows of dead processes, old rows, and too many rows."""

from datetime import timedelta

import pytest
from django.test import override_settings
from django.utils import timezone

from gateway.records import models
from gateway.records.models import HostProcess
from gateway.transports.sessions import Session
from tests.support.mirror import Mirror, lost_process, open_row, row

pytestmark = pytest.mark.django_db


@override_settings(GUMCP_MAX_SESSION_ROWS_PER_USER=20)
def test_rows_of_one_user_are_bounded_and_the_oldest_are_dropped() -> None:
    mirror = Mirror()
    neighbour, still_open = mirror.open("bob"), mirror.open("greedy")
    mirror.close(neighbour)
    newest: list[Session] = []
    for number in range(50):
        mirror.close(mirror.open("greedy"))
        mirror.add_instance("greedy")
        if number % 2 == 0:
            mirror.flush()
            mirror.instances.clear()
        if number >= 40:
            newest.append(mirror.open("greedy"))
            mirror.close(newest[-1])
    mirror.flush()
    kept = models.SessionRecord.objects.filter(user_id="greedy", state="closed")
    # Rows are deleted each time a tenth of those that are kept has been added.
    assert 20 <= kept.count() < 20 + 2 + 2
    assert {session.row_id for session in newest} <= set(kept.values_list("id", flat=True))
    assert (row(neighbour).state, row(still_open).state) == ("closed", "open")
    assert models.InstanceRecord.objects.filter(user_id="greedy").exclude(ended_at=None).count() < 20 + 2 + 2


@override_settings(GUMCP_MAX_SESSION_ROWS=30)
def test_rows_of_invented_users_are_bounded_in_all() -> None:
    mirror = Mirror()
    for number in range(100):
        mirror.close(mirror.open(f"user-{number}"))
        mirror.flush()
    assert 30 <= models.SessionRecord.objects.count() <= 33
    assert models.SessionRecord.objects.filter(user_id="user-99").exists()
    assert not models.SessionRecord.objects.filter(user_id="user-0").exists()


@override_settings(GUMCP_MAX_SESSION_ROWS_PER_USER=2, GUMCP_MAX_SESSION_ROWS=0)
def test_rows_that_an_earlier_process_left_over_are_deleted_at_the_start() -> None:
    process = lost_process()
    now = timezone.now()
    for minutes in range(10):
        closed_at = now - timedelta(minutes=minutes)
        open_row(process, user_id="left", state="closed", closed_at=closed_at, opened_at=closed_at)
    Mirror().flush()
    kept = models.SessionRecord.objects.values_list("closed_at", flat=True)
    assert sorted(kept) == [now - timedelta(minutes=1), now]


@override_settings(GUMCP_MAX_SESSION_ROWS_PER_USER=0, GUMCP_MAX_SESSION_ROWS=0)
def test_rows_are_not_counted_where_there_is_no_limit() -> None:
    mirror = Mirror()
    for _ in range(30):
        mirror.close(mirror.open())
        mirror.flush()
    assert models.SessionRecord.objects.count() == 30


def test_session_of_a_silent_process_is_marked_lost_and_others_are_not() -> None:
    long_ago = timezone.now() - timedelta(seconds=11)
    dead = open_row(lost_process(last_seen_at=long_ago))
    alive = open_row(lost_process())
    mirror = Mirror()
    own = mirror.open()
    mirror.flush()
    dead.refresh_from_db()
    alive.refresh_from_db()
    assert (dead.state, dead.closed_at, alive.state) == ("lost", long_ago, "open")
    assert row(own).state == "open"


def test_instances_of_a_dead_process_without_sessions_end_and_are_pruned_with_it() -> None:
    long_ago = timezone.now() - timedelta(days=8)
    dead, alive = lost_process(last_seen_at=long_ago), lost_process()
    for process in (dead, alive):
        models.InstanceRecord.objects.create(process=process, server_name="workshop", user_id="x", started_at=long_ago)
    with override_settings(GUMCP_SESSION_RETENTION_DAYS=30):
        Mirror().flush()
    assert (dead.instances.get().ended_at, alive.instances.get().ended_at) == (long_ago, None)
    Mirror().flush()
    assert not HostProcess.objects.filter(id=dead.id).exists()
    assert alive.instances.count() == 1


def test_closed_sessions_are_pruned_after_their_time_and_open_ones_never() -> None:
    process = lost_process(last_seen_at=timezone.now() - timedelta(days=8))
    old = timezone.now() - timedelta(days=7, minutes=1)
    pruned = open_row(process, state="closed", closed_at=old, opened_at=old)
    young = timezone.now() - timedelta(days=6)
    kept = open_row(process, state="closed", closed_at=young, opened_at=old)
    mirror = Mirror()
    still_open = mirror.open()
    mirror.flush()
    ids = set(models.SessionRecord.objects.values_list("id", flat=True))
    assert ids == {kept.id, still_open.row_id}
    assert pruned.id not in ids
    with override_settings(GUMCP_SESSION_RETENTION_DAYS=5):
        Mirror().flush()
    assert not models.SessionRecord.objects.filter(id=kept.id).exists()
    Mirror().flush()
    assert not HostProcess.objects.filter(id=process.id).exists()


def test_rows_are_kept_for_good_where_the_time_is_longer_than_any() -> None:
    old = timezone.now() - timedelta(days=9000)
    kept = open_row(lost_process(last_seen_at=old), state="closed", closed_at=old, opened_at=old)
    with override_settings(GUMCP_SESSION_RETENTION_DAYS=999_999):
        Mirror().flush()
    assert models.SessionRecord.objects.filter(id=kept.id).exists()
