"""Requests to reload servers and to look for new folders, from whoever asks to the host that carries them out."""

from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from gateway.catalog.definitions import Discovery, LoadFailure
from gateway.catalog.registry import Registry
from gateway.instances.listings import Listings
from gateway.records.models import HostProcess, ServerRecord
from gateway.records.operator_requests import OperatorRequests
from gateway.records.recorder import Recorder
from gateway.records.reload_requests import hosts_that_have_not, request_reload
from gateway.transports.sessions import Sessions
from tests.support.logged_in import browser, make_operator

pytestmark = pytest.mark.django_db

EMPTY = Registry(Discovery())


def make_host(*, silent_seconds: float = 0) -> UUID:
    """The row of a host that was last heard of some time ago."""
    seen = timezone.now() - timedelta(seconds=silent_seconds)
    row = HostProcess.objects.create(id=uuid4(), hostname="here", pid=1, started_at=seen, last_seen_at=seen)
    return row.id


def make_server(name: str) -> ServerRecord:
    return ServerRecord.objects.create(name=name, folder=f"/s/{name}", status="loaded", loaded_at=timezone.now())


def test_request_reaches_every_running_host_once_and_none_that_starts_later() -> None:
    running, dead = make_host(), make_host(silent_seconds=60)
    started = timezone.now()
    weather = make_server("weather")
    make_server("time")
    at = request_reload(ServerRecord.objects.filter(id=weather.id))
    requests = OperatorRequests(EMPTY, since=started)
    requests.read(running)
    assert (requests.take_look_request(), requests.take_servers_to_reload()) == (at, {"weather"})
    requests.read(running)
    assert (requests.take_look_request(), requests.take_servers_to_reload()) == (None, set())
    for process, since in ((dead, started), (running, timezone.now())):
        late = OperatorRequests(EMPTY, since=since)
        late.read(process)
        assert late.take_look_request() is None


def test_host_is_waited_for_until_it_has_carried_the_request_out_or_is_dead() -> None:
    hosts = {make_host(), make_host()}
    first, second = hosts
    at = request_reload()
    newcomer = make_host()
    assert {row.id for row in hosts_that_have_not(at, hosts)} == hosts
    HostProcess.objects.filter(id=first).update(looked_at=at)
    HostProcess.objects.filter(id=second).update(looked_at=at - timedelta(seconds=1))
    assert {row.id for row in hosts_that_have_not(at, hosts)} == {second}
    HostProcess.objects.filter(id=second).update(last_seen_at=at - timedelta(seconds=60))
    assert not hosts_that_have_not(at, hosts)
    assert newcomer not in hosts


def test_rows_of_servers_are_written_before_the_request_counts_as_carried_out() -> None:
    registry = Registry(Discovery())
    recorder = Recorder(registry, Sessions(), [], Listings())
    recorder._flush(is_last=False)
    at = request_reload()
    recorder.operator_requests.read(recorder.process_id)
    assert recorder.operator_requests.take_look_request() == at
    registry.note_failure(LoadFailure("broken", Path("/s/broken"), "In main.py, line 1: ValueError"))
    recorder.note_look(at)
    recorder._flush(is_last=False)
    assert HostProcess.objects.get(id=recorder.process_id).looked_at == at
    assert ServerRecord.objects.get(name="broken").reason == "In main.py, line 1: ValueError"


# -- in the admin

LOOK = "/admin/records/serverrecord/look/"
LIST = "/admin/records/serverrecord/"


def test_operator_has_hosts_look_for_new_folders_with_one_button_also_where_there_is_no_server() -> None:
    host = make_host()
    client = browser(make_operator("staff", "view_serverrecord", "change_serverrecord"))
    assert "Look for new folders" in client.get(LIST).content.decode()
    answer = client.post(LOOK, follow=True)
    assert answer.redirect_chain == [(LIST, 302)]
    assert "New folders are being loaded." in answer.content.decode()
    assert HostProcess.objects.get(id=host).look_requested_at is not None


def test_staff_who_may_not_change_servers_have_no_button_and_are_refused() -> None:
    host = make_host()
    client = browser(make_operator("staff", "view_serverrecord"))
    assert "Look for new folders" not in client.get(LIST).content.decode()
    assert client.post(LOOK).status_code == 403
    assert HostProcess.objects.get(id=host).look_requested_at is None


def test_link_to_the_button_changes_nothing() -> None:
    host = make_host()
    assert browser(User.objects.create_superuser("root")).get(LOOK).status_code == 405
    assert Client().post(LOOK).status_code == 302
    assert HostProcess.objects.get(id=host).look_requested_at is None


def test_reloading_chosen_servers_reaches_the_hosts() -> None:
    host, weather = make_host(), make_server("weather")
    client = browser(User.objects.create_superuser("root"))
    client.post(LIST, {"action": "reload_servers", "_selected_action": str(weather.id)})
    requests = OperatorRequests(EMPTY, since=timezone.now() - timedelta(seconds=5))
    requests.read(host)
    assert requests.take_servers_to_reload() == {"weather"}
