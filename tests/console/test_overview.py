"""The overview: what its figures say, its page, and the past of its plots."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError
from django.test import Client
from django.utils import timezone

from gateway.access.identity import Identity
from gateway.apps import GatewayConfig
from gateway.catalog.definitions import Discovery, LoadFailure
from gateway.catalog.discovery import discover
from gateway.catalog.registry import Registry
from gateway.console.snapshot import take_snapshot
from gateway.host.host import Host
from gateway.instances.call_log import Call
from gateway.records.models import HostProcess, MinuteRecord
from gateway.transports.sessions import Session
from tests.support.logged_in import browser, make_operator
from tests.support.processes import BUNDLED_SERVERS

HOSTILE = "<b onmouseover=x>\u202egnirts\x00" + "x" * 300


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host that does not run, with three servers and one that did not load."""
    found = discover([BUNDLED_SERVERS])
    failure = LoadFailure("broken", Path("/srv/broken"), "main.py raised <it>", "Traceback …")
    host = Host(Registry(Discovery(found.definitions, [failure])))
    host.recorder.last_flush = float("inf")
    monkeypatch.setattr(GatewayConfig.current(), "host", host)
    yield host
    host.close()


@pytest.fixture
def operator(db: None) -> Client:
    return browser(make_operator("olga", "view_overview"))


def table(host: Host, name: str) -> list[Any]:
    (found,) = (table for table in take_snapshot(host)["tables"] if table["id"] == name)
    return [row["cells"] for row in found["rows"]]


def add_session(host: Host, client: str = "", server: str = "time", version: str = "2025-11-25") -> Session:
    session = Session(server, Identity("ada", "canary-key"), "sse", "127.0.0.1")
    session.client_name, session.protocol_version, session.is_established = client, version, True
    host.sessions.add(session)
    return session


def note(host: Host, outcome: str = "ok", user: str = "ada", tool: str = "echo", server: str = "time") -> None:
    call = Call(server, tool, user, outcome=outcome, reason="It took too long.", seconds=0.02)
    host.call_log.note(host.call_log.traffic(server), call, tool)


def test_state_of_the_host_names_what_is_wrong_in_one_line(host: Host) -> None:
    assert take_snapshot(host)["state"] == {"level": "degraded", "text": "Degraded: broken cannot be loaded."}
    host.recorder.last_error = "OperationalError"
    text = take_snapshot(host)["state"]["text"]
    assert "OperationalError" in text
    assert "history are late" in text
    host.drain.is_begun, host.drain.ends_at = True, 0.0
    assert take_snapshot(host)["state"]["level"] == "draining"


def test_servers_that_failed_come_first_with_the_reason_then_the_busiest(host: Host) -> None:
    for _ in range(3):
        note(host, server="everything")
    note(host, "timeout", tool="slow")
    names = [cells[0] for cells in table(host, "servers")]
    assert names == ["broken", "time", "everything", "simple-tools-server"]
    broken, time, *_ = table(host, "servers")
    assert broken[1] == "not loaded: main.py raised <it>"
    assert (time[4], time[7]) == ("1", "slow: timeout, 0 s ago")


def test_open_sessions_are_counted_by_client_era_and_transport(host: Host) -> None:
    for _ in range(2):
        add_session(host, "claude-code")
    add_session(host, HOSTILE, version="invented")
    first, second = table(host, "sessions")
    assert first == ["claude-code", "2025-11-25", "sse", "2"]
    assert second[1:] == ["unknown", "sse", "1"]
    assert second[0].startswith(r"<b onmouseover=x>\u202egnirts\x00x")
    assert len(second[0]) <= 60


def test_many_kinds_of_clients_are_one_row_beyond_the_most_frequent(host: Host) -> None:
    for number in range(40):
        add_session(host, f"client-{number}")
    rows = table(host, "sessions")
    assert len(rows) == 16
    assert rows[-1] == ["(other clients)", "", "", "25"]


def test_refusals_users_and_tools_are_counted(host: Host) -> None:
    for _ in range(2):
        note(host, user="bob")
        host.call_log.note_refusal(Call("time", "", reason="unauthenticated: the key has expired"))
    note(host, tool="other")
    assert table(host, "refusals") == [["unauthenticated", "2"]]
    assert table(host, "users") == [["bob", "2"], ["ada", "1"]]
    assert table(host, "tools") == [["echo", "time", "2"], ["other", "time", "1"]]


def test_host_of_several_processes_says_whose_figures_these_are(host: Host) -> None:
    assert take_snapshot(host)["of"] == ""
    now = timezone.now()
    host.recorder.processes = [
        HostProcess(hostname="here", pid=pid, started_at=now, last_seen_at=now, open_sessions=pid) for pid in (1, 2)
    ]
    host.recorder.processes[1].id = host.recorder.process_id
    assert "one process of 2" in take_snapshot(host)["of"]
    assert [cells[:2] for cells in table(host, "processes")] == [["here:1", "1"], ["here:2 (this one)", "2"]]


def test_nothing_of_a_key_or_a_session_id_is_shown(host: Host) -> None:
    session = add_session(host, "client")
    note(host)
    shown = repr(take_snapshot(host))
    assert "canary-key" not in shown
    assert session.id not in shown


# -- The page --------------------------------------------------------------------------------------------------------


def test_page_shows_the_figures_of_the_moment_without_a_script(host: Host, operator: Client) -> None:
    add_session(host, HOSTILE)
    host.recorder.history.take_sample()
    answer = operator.get("/admin/")
    page = answer.content.decode()
    assert "Degraded: broken cannot be loaded." in page
    assert "main.py raised &lt;it&gt;" in page
    assert "&lt;b onmouseover=x&gt;" in page
    assert "<b onmouseover" not in page
    assert "\u202e" not in page
    assert not re.search(r"<(script|style)>| style=| on\w+=\"", page)
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert "no-store" in answer.headers["Cache-Control"]


def test_operator_without_the_permission_sees_the_tables_of_the_admin_only(
    host: Host, client: Client, db: None
) -> None:
    client.force_login(User.objects.create_user("eve", is_staff=True))
    assert 'id="overview"' not in client.get("/admin/").content.decode()
    assert client.get("/admin/history/hour/").status_code == 403


def test_page_is_there_in_a_process_that_does_not_serve(admin_client: Client) -> None:
    assert admin_client.get("/admin/").status_code == 200


def test_logo_is_the_icon_of_every_page_and_leads_to_the_overview(client: Client, db: None) -> None:
    for path in ("/admin/login/", "/-/login/", "/"):
        page = client.get(path, HTTP_ACCEPT="text/html").content.decode()
        assert 'rel="icon" type="image/svg+xml" href="/static/console/logo.svg"' in page, path
    assert client.get("/favicon.ico").headers["Location"] == "/static/console/logo.svg"


# -- The past --------------------------------------------------------------------------------------------------------


def minute(at: datetime, **figures: Any) -> None:
    facts = {"calls": 60, "errors": 6, "sessions": 3, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0}
    MinuteRecord.objects.create(**{"at": at, "process_id": uuid4(), "memory_bytes": 2**20, **facts, **figures})


def past(operator: Client, name: str) -> Any:
    answer = operator.get(f"/admin/history/{name}/")
    assert answer.status_code == 200
    return answer.json()


def test_last_hour_comes_from_memory(host: Host, operator: Client, django_assert_num_queries: Any) -> None:
    host.recorder.history.take_sample()
    operator.get("/admin/history/hour/")
    with django_assert_num_queries(4):  # who is asking: session, user, and two for permissions
        (point,) = past(operator, "hour")["points"]
    assert len(point) == 8


def test_points_of_a_day_add_up_processes_and_show_the_highest_percentile(host: Host, operator: Client) -> None:
    start = datetime.fromtimestamp(timezone.now().timestamp() // 300 * 300, UTC) - timedelta(hours=1)
    for number in range(5):
        minute(start + timedelta(minutes=number))
        minute(start + timedelta(minutes=number), calls=120, p95_ms=10.0 * number, p99_ms=None)
    minute(start + timedelta(hours=-30))
    assert past(operator, "day")["points"] == [
        [start.timestamp(), 3.0, 0.2, 1.0, 40.0, 3.0, 6, 2.0],
    ]
    assert len(past(operator, "week")["points"]) == 3  # with a gap between the two


def test_gap_in_the_rows_is_a_gap_in_the_line(host: Host, operator: Client) -> None:
    start = datetime.fromtimestamp(timezone.now().timestamp() // 300 * 300, UTC) - timedelta(hours=2)
    minute(start)
    minute(start + timedelta(hours=1))
    assert [point[1] for point in past(operator, "day")["points"]] == [1.0, None, 1.0]


def test_history_says_that_it_is_late_while_rows_cannot_be_written(host: Host, operator: Client) -> None:
    host.recorder.last_error = "OperationalError"
    assert "OperationalError" in past(operator, "day")["late"]


def test_history_that_cannot_be_read_says_so_and_the_last_hour_goes_on(
    host: Host, operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OperationalError("locked")

    monkeypatch.setattr(MinuteRecord.objects, "filter", fail)
    answer = operator.get("/admin/history/week/")
    assert (answer.status_code, "cannot be read" in answer.json()["error"]) == (503, True)
    assert past(operator, "hour") == {"points": [], "late": ""}


def test_range_that_there_is_not_is_404(host: Host, operator: Client) -> None:
    assert operator.get("/admin/history/century/").status_code == 404
