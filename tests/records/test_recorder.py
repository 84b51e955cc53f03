"""The recorder's writes, one flush at a time, without its thread. Real hosts: `e2e/test_operators`, `faults`."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, OperationalError
from django.test import override_settings
from django.utils import timezone

from gateway.access.identity import Identity
from gateway.apps import GatewayConfig
from gateway.catalog.definitions import Discovery, LoadFailure
from gateway.catalog.registry import Registry
from gateway.instances.instance import Instance
from gateway.instances.listings import Listing, Listings
from gateway.records import models
from gateway.records.models import HostProcess
from gateway.records.recorder import Recorder
from gateway.storable import MAX_TEXT_LENGTH
from gateway.transports.sessions import Session, Sessions

pytestmark = pytest.mark.django_db


class Mirror:
    """Sessions and instances in memory, and their recorder."""

    def __init__(self, registry: Registry | None = None) -> None:
        self.sessions = Sessions()
        self.instances: list[Instance] = []
        self.listings = Listings()
        # Not started: it writes when it is told to.
        served = registry or GatewayConfig.current().registry
        self.recorder = Recorder(served, self.sessions, self.instances, self.listings)

    def open(self, user_id: str = "ada", *, is_established: bool = True) -> Session:
        session = Session("workshop", Identity(user_id, "canary-key"), "sse", "127.0.0.1")
        session.is_established = is_established
        self.sessions.add(session)
        return session

    def add_instance(self, user_id: str = "ada") -> Instance:
        not_running: Any = None
        instance = Instance("workshop", Identity(user_id, "canary-key"), not_running)
        self.instances.append(instance)
        return instance

    def close(self, session: Session) -> None:
        self.sessions.remove(session)
        self.recorder._on_session_closed(session)

    def learn(self, server_name: str, listing: Listing) -> None:
        self.listings.learn(server_name, listing)
        self.recorder._on_listing_learned(server_name, listing)

    def flush(self) -> None:
        self.recorder._flush(is_last=False)


def row(session: Session) -> models.SessionRecord:
    return models.SessionRecord.objects.get(id=session.row_id)


def instance_row(instance: Instance) -> models.InstanceRecord:
    return models.InstanceRecord.objects.get(id=instance.row_id)


def lost_process(**facts: Any) -> HostProcess:
    now = timezone.now()
    facts = {"hostname": "elsewhere", "pid": 1, "started_at": now, "last_seen_at": now, **facts}
    return HostProcess.objects.create(**facts)


def open_row(process: HostProcess, **facts: Any) -> models.SessionRecord:
    now = timezone.now()
    times = {"opened_at": now, "last_activity_at": now}
    return models.SessionRecord.objects.create(
        **{"process": process, "server_name": "workshop", "user_id": "x", "state": "open", **times, **facts}
    )


def test_row_follows_its_session() -> None:
    mirror = Mirror()
    session = mirror.open()
    mirror.flush()
    assert (row(session).state, row(session).user_id, row(session).messages_in) == ("open", "ada", 0)
    session.note_incoming()
    session.note_client("client", "1.0", "2025-11-25")
    mirror.flush()
    assert (row(session).messages_in, row(session).client_name) == (1, "client")
    session.end_reason = "because"
    mirror.close(session)
    mirror.flush()
    assert (row(session).state, row(session).end_reason) == ("closed", "because")
    assert row(session).closed_at is not None


def test_session_that_came_and_went_between_two_flushes_has_a_row() -> None:
    mirror = Mirror()
    session = mirror.open()
    mirror.close(session)
    mirror.flush()
    assert row(session).state == "closed"


def test_session_that_was_never_established_has_no_row() -> None:
    mirror = Mirror()
    refused, waiting = mirror.open("refused", is_established=False), mirror.open("waiting", is_established=False)
    mirror.flush()
    mirror.close(refused)
    mirror.flush()
    assert not models.SessionRecord.objects.exists()
    waiting.is_established = True
    mirror.flush()
    assert row(waiting).state == "open"


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


def test_protocol_version_that_a_client_invented_is_not_kept() -> None:
    mirror = Mirror()
    known, invented = mirror.open(), mirror.open()
    known.protocol_version, invented.protocol_version = "2025-11-25", "x" * 200
    mirror.flush()
    assert (row(known).protocol_version, row(invented).protocol_version) == ("2025-11-25", "unknown")


def test_no_row_holds_the_key_or_the_session_id() -> None:
    mirror = Mirror()
    session = mirror.open()
    mirror.flush()
    content = " ".join(str(value) for value in models.SessionRecord.objects.values().get().values())
    assert "canary-key" not in content
    assert session.id not in content


def test_thousand_sessions_are_written_in_a_few_statements(django_assert_max_num_queries: Any) -> None:
    mirror = Mirror()
    mirror.flush()
    for number in range(1000):
        mirror.open(f"user-{number}")
    with django_assert_max_num_queries(40):
        mirror.flush()
    assert models.SessionRecord.objects.count() == 1000
    with django_assert_max_num_queries(12):
        mirror.flush()


def test_what_could_not_be_written_is_written_later(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror()
    mirror.flush()
    closed, opened = mirror.open("closed"), mirror.open("opened")
    mirror.close(closed)
    mirror.learn("workshop", Listing("9", ("a",)))

    def fail(*arguments: Any, **options: Any) -> None:
        raise DatabaseError("locked")

    with monkeypatch.context() as patched:
        patched.setattr(models.SessionRecord.objects, "bulk_create", fail)
        for _ in range(3):
            with pytest.raises(DatabaseError):
                mirror.flush()
    mirror.flush()
    assert row(closed).state == "closed"
    assert row(opened).state == "open"
    assert models.ServerRecord.objects.get(name="workshop").version == "9"


def test_servers_are_mirrored_with_their_reasons() -> None:
    failure = LoadFailure("broken", Path("/srv/broken"), "main.py raised it", "Traceback …")
    Mirror(Registry(Discovery(list(GatewayConfig.current().registry), [failure]))).flush()
    broken = models.ServerRecord.objects.get(name="broken")
    assert (broken.status, broken.reason, broken.traceback) == ("failed", "main.py raised it", "Traceback …")
    assert models.ServerRecord.objects.filter(status="loaded").count() == 3


def test_server_that_is_gone_or_mended_shows_so_after_a_restart() -> None:
    found = list(GatewayConfig.current().registry)
    failure = LoadFailure("mended", found[0].folder, "was broken", "Traceback …")
    Mirror(Registry(Discovery(found[1:], [failure]))).flush()
    Mirror(Registry(Discovery(found[:1], []))).flush()
    mended = models.ServerRecord.objects.get(folder=str(found[0].folder))
    assert (mended.name, mended.status, mended.reason, mended.traceback) == (found[0].name, "loaded", "", "")
    assert set(models.ServerRecord.objects.filter(status="removed").values_list("name", flat=True)) == {
        definition.name for definition in found[1:]
    }


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


def test_instance_that_ends_while_the_database_is_away_has_its_end_written_later() -> None:
    mirror = Mirror()
    ended, alive = mirror.add_instance(), mirror.add_instance()
    mirror.flush()
    mirror.recorder._note_failure(OperationalError("the database is away"))
    mirror.instances.remove(ended)
    mirror.flush()
    assert instance_row(ended).ended_at is not None
    assert instance_row(alive).ended_at is None


def test_instance_marked_ended_by_mistake_is_alive_again_once_its_process_writes() -> None:
    mirror = Mirror()
    instance = mirror.add_instance()
    mirror.flush()
    models.InstanceRecord.objects.update(ended_at=timezone.now())
    mirror.recorder._note_failure(OperationalError("the database was away"))
    mirror.flush()
    assert instance_row(instance).ended_at is None


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


def test_session_marked_lost_by_mistake_is_open_again_once_its_process_writes() -> None:
    mirror = Mirror()
    session = mirror.open()
    mirror.flush()
    models.SessionRecord.objects.update(state="lost", closed_at=timezone.now())
    mirror.recorder._note_failure(DatabaseError("the database was away"))
    mirror.flush()
    assert (row(session).state, row(session).closed_at) == ("open", None)


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


def test_wish_of_an_operator_is_read_for_this_process_only() -> None:
    mirror, other = Mirror(), Mirror()
    session = mirror.open()
    mirror.flush()
    other.flush()
    models.SessionRecord.objects.update(is_end_requested=True)
    mirror.flush()
    other.flush()
    assert mirror.recorder.operator_requests.take_sessions_to_end() == [session.row_id]
    assert mirror.recorder.operator_requests.take_sessions_to_end() == []
    assert other.recorder.operator_requests.take_sessions_to_end() == []


@pytest.mark.parametrize("status", ["failed", "removed"])
def test_policy_of_a_server_that_is_not_served_is_known_before_it_comes_back(status: str) -> None:
    models.ServerRecord.objects.create(
        name="back", folder="/srv/back", status=status, loaded_at=timezone.now(), is_enabled=False, max_threads=3
    )
    mirror = Mirror()
    mirror.flush()
    policies = mirror.recorder.operator_requests.take_policies()
    assert policies is not None
    assert (policies["back"].is_enabled, policies["back"].max_threads) == (False, 3)


def test_policy_of_a_repeated_name_is_that_of_the_folder_in_use() -> None:
    for day, folder in enumerate(("/srv/one/workshop", "/srv/two/workshop")):
        models.ServerRecord.objects.create(
            name="workshop",
            folder=folder,
            status="removed",
            loaded_at=timezone.now() + timedelta(days=day),
            is_enabled=False,
        )
    mirror = Mirror()
    mirror.flush()
    assert not (mirror.recorder.operator_requests.take_policies() or {})["workshop"].is_enabled
    mirror.flush()
    assert (mirror.recorder.operator_requests.take_policies() or {})["workshop"].is_enabled


def test_write_of_a_row_does_not_take_back_an_operators_wish() -> None:
    mirror = Mirror()
    session = mirror.open()
    mirror.flush()
    models.SessionRecord.objects.update(is_end_requested=True)
    session.note_incoming()
    mirror.flush()
    assert row(session).is_end_requested


# -- What cannot be written ------------------------------------------------------------------------------------------


def test_texts_that_no_database_takes_cost_no_row() -> None:
    odd = "caf\udce9\0" + "x" * 30_000
    failures = [LoadFailure(f"{name}", Path(f"/srv/{name}"), odd, odd) for name in ("\udce9", "\udcea")]
    mirror = Mirror(Registry(Discovery(list(GatewayConfig.current().registry), failures)))
    session = mirror.open(odd)
    session.note_client("client\0", "\udce9", "\0")
    session.address = session.end_reason = odd
    mirror.learn("workshop", Listing(odd, ("a\0", odd), (odd,), (odd,)))
    mirror.recorder.note_conditions({"workshop": odd})
    mirror.flush()
    failed = models.ServerRecord.objects.filter(status="failed")
    assert {server.folder for server in failed} == {"/srv/\\udce9", "/srv/\\udcea"}
    assert row(session).client_name == "client\\x00"
    rows = [*models.ServerRecord.objects.values(), *models.SessionRecord.objects.values()]
    texts = [text for values in rows for text in values.values() if isinstance(text, str)]
    texts += [name for values in rows for kind in ("tools", "resources", "prompts") for name in values.get(kind, [])]
    for text in texts:
        assert "\0" not in text.encode().decode()
        assert len(text) <= MAX_TEXT_LENGTH
    assert max(len(row(session).user_id), len(row(session).address), len(row(session).end_reason)) == 255
    workshop = models.ServerRecord.objects.get(name="workshop")
    assert (workshop.tools[0], len(workshop.version), len(workshop.condition)) == ("a\\x00", 255, 500)


def test_what_operators_want_is_read_while_rows_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror()
    session = mirror.open()
    mirror.flush()
    mirror.recorder.operator_requests.take_policies()
    models.SessionRecord.objects.update(is_end_requested=True)
    models.ServerRecord.objects.filter(name="workshop").update(is_enabled=False, reload_requested_at=timezone.now())

    def fail(*arguments: Any, **options: Any) -> None:
        raise OperationalError("locked")

    for manager in (models.HostProcess.objects, models.ServerRecord.objects, models.SessionRecord.objects):
        monkeypatch.setattr(manager, "bulk_create", fail)
        monkeypatch.setattr(manager, "update_or_create", fail)
    session.note_incoming()
    mirror.recorder._last_heartbeat = float("-inf")
    with pytest.raises(OperationalError):
        mirror.flush()
    assert mirror.recorder.operator_requests.take_sessions_to_end() == [session.row_id]
    assert mirror.recorder.operator_requests.take_servers_to_reload() == {"workshop"}
    policies = mirror.recorder.operator_requests.take_policies()
    assert policies is not None
    assert not policies["workshop"].is_enabled


@pytest.mark.django_db(transaction=True)
def test_row_that_no_database_takes_is_left_out_alone_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    mirror = Mirror()
    mirror.flush()
    before, odd, after = mirror.open("before"), mirror.open("odd"), mirror.open("after")
    odd.messages_in = 2**70
    mirror.flush()
    odd.note_incoming()
    after.note_incoming()
    mirror.flush()
    assert set(models.SessionRecord.objects.values_list("id", flat=True)) == {before.row_id, after.row_id}
    assert row(after).messages_in == 1
    mirror.close(odd)
    mirror.flush()
    assert caplog.messages == [f"The row of session {odd.row_id} is left out, it cannot be written: OverflowError"]
    assert mirror.recorder.last_error == ""


@pytest.mark.django_db(transaction=True)
def test_rows_that_a_replaced_database_lacks_are_written_again_and_none_is_left_out() -> None:
    mirror = Mirror()
    idle, active = mirror.open("idle"), mirror.open("active")
    mirror.flush()
    HostProcess.objects.all().delete()
    active.note_incoming()
    with pytest.raises(IntegrityError) as caught:
        mirror.flush()
    mirror.recorder._note_failure(caught.value)
    mirror.flush()
    assert set(models.SessionRecord.objects.values_list("id", flat=True)) == {idle.row_id, active.row_id}


def test_database_that_was_replaced_without_an_error_gets_everything_with_the_next_sign_of_life() -> None:
    mirror = Mirror()
    session, instance = mirror.open(), mirror.add_instance()
    mirror.learn("workshop", Listing("1.2", ("echo",), (), ()))
    mirror.flush()
    for model in (models.SessionRecord, models.InstanceRecord, models.ServerRecord, HostProcess):
        model.objects.all().delete()
    mirror.recorder._last_heartbeat = float("-inf")
    mirror.flush()
    assert row(session).state == "open"
    assert instance_row(instance).ended_at is None
    server = models.ServerRecord.objects.get(name="workshop")
    assert (server.version, server.tools) == ("1.2", ["echo"])


@pytest.mark.parametrize("kind", [DatabaseError, UnicodeError])
def test_failure_is_logged_once_and_without_its_text(kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    mirror = Mirror()
    text = "-".join(["canary", "row"])
    for _ in range(3):
        try:
            raise kind(text)
        except kind as error:
            mirror.recorder._note_failure(error)
    assert caplog.text.count("Rows cannot be written") == 1
    assert kind.__name__ in caplog.text
    assert text not in caplog.text
    assert mirror.recorder.last_error == kind.__name__
