"""Rows of several processes: each says what it knows, and operators see what holds for all."""

from pathlib import Path
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db.models.functions import Now
from django.utils import timezone

from gateway.catalog.definitions import Discovery, NearMiss
from gateway.catalog.registry import Registry
from gateway.instances.listings import Listings
from gateway.records.models import HostProcess, ServerRecord
from gateway.records.processes import Place, conditions_of_servers
from gateway.records.recorder import Recorder
from gateway.transports.sessions import Sessions
from tests.support.logged_in import browser

pytestmark = pytest.mark.django_db


def recorder(*folders: str, place: Place | None = None) -> Recorder:
    found = [NearMiss(Path(folder).name, Path(folder), "hint") for folder in folders]
    return Recorder(Registry(Discovery([], [], found)), Sessions(), [], Listings(), place=place)


def process(hostname: str, **facts: object) -> HostProcess:
    return HostProcess.objects.create(
        id=uuid4(), hostname=hostname, pid=1, started_at=timezone.now(), **{"last_seen_at": Now(), **facts}
    )


def condition() -> str:
    return ServerRecord.objects.get(name="notes").condition


def test_row_says_where_the_process_is_and_what_it_uses() -> None:
    recorder(place=Place(1, "10.0.0.1:8000", "10.0.0.1:8100"))._flush(is_last=False)
    row = HostProcess.objects.get()
    assert (row.slot, row.node, row.peer_address, row.is_draining) == (1, "10.0.0.1:8000", "10.0.0.1:8100", False)
    assert row.version
    assert row.memory_bytes == 0 or row.memory_bytes > 2**20


def test_process_that_drains_says_so_at_once() -> None:
    draining = recorder()
    draining._flush(is_last=False)
    draining.note_drain()
    draining._flush(is_last=False)
    assert HostProcess.objects.get().is_draining


def test_process_of_several_machines_says_between_heartbeats_only_that_it_is_alive() -> None:
    member = recorder(place=Place(0, "10.0.0.1:8000", "10.0.0.1:8100"))
    member._flush(is_last=False)
    for remove in (False, True):
        HostProcess.objects.update(last_seen_at="2000-01-01T00:00Z", memory_bytes=7)
        if remove:
            HostProcess.objects.all().delete()
        member._last_beat = float("-inf")
        member._flush(is_last=False)
        row = HostProcess.objects.get()
        assert row.last_seen_at.year > 2000
        assert (row.memory_bytes == 7) is not remove


def test_condition_that_one_process_knows_stays_until_it_or_its_process_ends() -> None:
    first, second = recorder("/s/notes"), recorder("/s/notes")
    for writer in (first, second):
        writer._flush(is_last=False)
    first.note_conditions({"notes": "its loop is blocked"})
    first._flush(is_last=False)
    second._flush(is_last=False)
    second.note_conditions({"notes": "calls are stuck"})
    second._flush(is_last=False)
    assert condition() == "its loop is blocked; calls are stuck"
    HostProcess.objects.filter(id=first.process_id).update(last_seen_at="2000-01-01T00:00Z")
    second._last_heartbeat = float("-inf")
    second._flush(is_last=False)
    assert condition() == "calls are stuck"
    second.note_conditions({})
    second._flush(is_last=False)
    assert condition() == ""
    assert conditions_of_servers() == {}


def test_folder_of_another_machine_that_runs_is_not_removed_and_that_of_a_dead_one_is() -> None:
    alive, dead = process("other"), process("gone", last_seen_at="2000-01-01T00:00Z")
    for row in (alive, dead):
        ServerRecord.objects.create(
            name=row.hostname, folder=f"/s/{row.hostname}", hostname=row.hostname, status="loaded", loaded_at=Now()
        )
    recorder("/s/notes")._flush(is_last=False)
    statuses = dict(ServerRecord.objects.values_list("name", "status"))
    assert statuses == {"other": "loaded", "gone": "removed", "notes": "near miss"}


def test_admin_lists_processes_with_what_they_do() -> None:
    process("a", slot=0, node="10.0.0.1:8000", load=0.5, memory_bytes=100 * 2**20)
    process("b", is_draining=True)
    process("c", last_seen_at="2000-01-01T00:00Z")
    client = browser(User.objects.create_superuser("root"))
    page = client.get("/admin/records/hostprocess/").content.decode()
    for text in ("10.0.0.1:8000", "50%", "100 MiB", ">serving<", ">draining<", ">ended<"):
        assert text in page
    row = HostProcess.objects.get(hostname="a")
    assert "100 MiB" in client.get(f"/admin/records/hostprocess/{row.pk}/change/").content.decode()
