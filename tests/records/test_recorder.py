"""What the recorder writes, one flush at a time, without its thread. Real hosts: `e2e/test_operators`, `faults`."""

from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from mcp_types import CLIENT_INFO_META_KEY

from gateway.apps import GatewayConfig
from gateway.catalog.definitions import Discovery, LoadFailure
from gateway.catalog.registry import Registry
from gateway.instances.instance import Instance
from gateway.instances.listings import Listing
from gateway.records import models, recorder
from gateway.records.models import HostProcess
from tests.support.function_calls import count_calls
from tests.support.mirror import Mirror, instance_row, row

pytestmark = pytest.mark.django_db


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


def test_silent_sessions_and_instances_cost_no_function_call_when_rows_are_written() -> None:
    mirror = Mirror()
    mirror.flush()

    def cost_of_a_round() -> int:
        return count_calls(lambda: (mirror.recorder._write_sessions(), mirror.recorder._write_instances(False)))

    def add(count: int) -> None:
        for number in range(count):
            mirror.open(f"user-{number}")
            stateless_request(mirror.add_instance(f"user-{number}"), {"name": "agent", "version": "2"})
        mirror.flush()

    add(1)
    of_few = cost_of_a_round()
    add(100)
    assert cost_of_a_round() == of_few


def test_instance_that_ends_as_others_begin_has_its_end_written() -> None:
    mirror = Mirror()
    ended, alive = mirror.add_instance(), mirror.add_instance()
    mirror.flush()
    mirror.instances.remove(ended)
    newcomer = mirror.add_instance()
    mirror.flush()
    assert instance_row(ended).ended_at is not None
    assert [instance_row(instance).ended_at for instance in (alive, newcomer)] == [None, None]


def test_sessions_to_end_are_found_without_looking_at_all_that_are_open() -> None:
    mirror = Mirror()
    mirror.flush()
    with CaptureQueriesContext(connection) as queries:
        mirror.recorder.operator_requests.read(mirror.recorder.process_id)
    (statement,) = [query["sql"] for query in queries.captured_queries if "is_end_requested" in query["sql"]]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {statement}")
        (plan,) = cursor.fetchall()
    assert "sessions_to_end" in plan[-1]


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


def test_instance_that_ends_while_the_database_is_away_has_its_end_written_later() -> None:
    mirror = Mirror()
    ended, alive = mirror.add_instance(), mirror.add_instance()
    mirror.flush()
    mirror.recorder._note_failure(OperationalError("the database is away"))
    mirror.instances.remove(ended)
    mirror.flush()
    assert instance_row(ended).ended_at is not None
    assert instance_row(alive).ended_at is None


def stateless_request(instance: Instance, client_info: object, *, version: str = "2026-07-28") -> None:
    message = {"method": "tools/call", "params": {"_meta": {CLIENT_INFO_META_KEY: client_info}}}
    instance.activity.note(message, True, "192.0.2.1", version)


def test_user_without_sessions_is_a_client_too_until_the_instance_ends() -> None:
    mirror = Mirror()
    instance = mirror.add_instance()
    mirror.flush()
    assert not models.SessionRecord.objects.exists()
    stateless_request(instance, {"name": "agent", "version": "2"})
    stateless_request(instance, {"name": "agent", "version": "3"})
    mirror.flush()
    client = models.SessionRecord.objects.get(id=instance.row_id)
    assert (client.user_id, client.state, client.transport) == ("ada", "stateless", "stateless")
    assert (client.client_name, client.client_version, client.protocol_version) == ("agent", "3", "2026-07-28")
    assert (client.address, client.messages_in, client.calls) == ("192.0.2.1", 2, 2)
    mirror.instances.remove(instance)
    mirror.flush()
    client.refresh_from_db()
    assert (client.state, client.end_reason) == ("closed", "its instance ended")
    assert client.closed_at is not None


def test_row_of_a_busy_stateless_client_is_written_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror()
    instance = mirror.add_instance()

    def written_requests() -> int:
        stateless_request(instance, {"name": "agent", "version": "2"})
        mirror.flush()
        return models.SessionRecord.objects.get(id=instance.row_id).messages_in

    assert [written_requests(), written_requests()] == [1, 1]
    monkeypatch.setattr(recorder, "CLIENT_ROW_SECONDS", 0.0)
    assert written_requests() == 3
    mirror.recorder._write_everything_again()
    models.SessionRecord.objects.all().delete()
    assert written_requests() == 4


@pytest.mark.parametrize("info", [None, "x", [], {}, {"name": 1, "version": "2"}, {"name": "a"}])
def test_stateless_request_that_says_nothing_useful_of_its_client_counts_all_the_same(info: object) -> None:
    mirror = Mirror()
    instance = mirror.add_instance()
    stateless_request(instance, info, version="9" * 300)
    instance.activity.note(["no", "request"], False, "", "")
    mirror.flush()
    client = models.SessionRecord.objects.get(id=instance.row_id)
    assert (client.client_name, client.messages_in, client.calls) == ("", 2, 1)
    assert client.protocol_version == "unknown"


def test_name_that_a_stateless_client_chose_is_cut_and_escaped() -> None:
    mirror = Mirror()
    instance = mirror.add_instance()
    stateless_request(instance, {"name": "\x00\u202e" + "n" * 1000, "version": "v" * 1000})
    mirror.flush()
    client = models.SessionRecord.objects.get(id=instance.row_id)
    assert client.client_name.startswith(r"\x00\u202en")
    assert (len(client.client_name), len(client.client_version)) == (200, 200)


def test_instance_marked_ended_by_mistake_is_alive_again_once_its_process_writes() -> None:
    mirror = Mirror()
    instance = mirror.add_instance()
    mirror.flush()
    models.InstanceRecord.objects.update(ended_at=timezone.now())
    mirror.recorder._note_failure(OperationalError("the database was away"))
    mirror.flush()
    assert instance_row(instance).ended_at is None


def test_session_marked_lost_by_mistake_is_open_again_once_its_process_writes() -> None:
    mirror = Mirror()
    session = mirror.open()
    mirror.flush()
    models.SessionRecord.objects.update(state="lost", closed_at=timezone.now())
    mirror.recorder._note_failure(DatabaseError("the database was away"))
    mirror.flush()
    assert (row(session).state, row(session).closed_at) == ("open", None)


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
