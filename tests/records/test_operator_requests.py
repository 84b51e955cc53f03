"""What operators ask for in rows, as a process reads it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django.utils import timezone

from gateway.apps import GatewayConfig
from gateway.catalog.definitions import Discovery
from gateway.catalog.registry import Registry
from gateway.records import models
from tests.support.mirror import Mirror, row

pytestmark = pytest.mark.django_db


def test_request_of_an_operator_is_read_for_this_process_only() -> None:
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


def test_time_limit_of_a_manifest_counts_until_an_operator_sets_another() -> None:
    definition = GatewayConfig.current().registry.get("workshop")
    registry = Registry(Discovery([replace(definition, call_timeout_seconds=5)]))
    mirror = Mirror(registry)
    mirror.flush()
    mirror.flush()
    assert (mirror.recorder.operator_requests.take_policies() or {})[definition.name].call_timeout_seconds == 5
    models.ServerRecord.objects.update(call_timeout_seconds=7)
    mirror.flush()
    assert (mirror.recorder.operator_requests.take_policies() or {})[definition.name].call_timeout_seconds == 7


def test_write_of_a_row_does_not_take_back_an_operators_request() -> None:
    mirror = Mirror()
    session = mirror.open()
    mirror.flush()
    models.SessionRecord.objects.update(is_end_requested=True)
    session.note_incoming()
    mirror.flush()
    assert row(session).is_end_requested


def test_requests_are_read_while_rows_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
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
