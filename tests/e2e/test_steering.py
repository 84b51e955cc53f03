"""Operators steer servers in the admin: what they set is in force within five seconds, and nothing else changes."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from html import unescape
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError

import pytest

from tests.support.admin_site import Admin
from tests.support.deadlines import within
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import PLAIN_SERVERS, ROOT, manage, until
from tests.support.streamable import HandshakeSession, StatelessClient
from tests.support.wire import tool_call

SWITCHED_OFF = "An operator has switched this server off. Try again later."

IN_FORCE_SECONDS: Final = 5.0

LIMITS: Final = (
    "call_timeout_seconds",
    "max_call_seconds",
    "max_concurrent_calls",
    "max_concurrent_calls_per_user",
    "max_threads",
    "when_blocked",
    "isolation",
)

MAKE_USERS = """
from django.contrib.auth.models import Permission, User
for name, codenames in (
    ("steerer", ["view_serverrecord", "change_serverrecord"]),
    ("changer", ["change_serverrecord"]),
    ("viewer", ["view_serverrecord"]),
    ("stranger", ["view_sessionrecord", "end_session"]),
):
    user = User.objects.create_user(name, password=f"{name}-password", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
"""


@pytest.fixture(scope="module")
def host(start_host: StartHost) -> Iterator[HostProcess]:
    with start_host(server_dirs=f"{ROOT / 'tests' / 'servers' / 'calls'}:{PLAIN_SERVERS}") as host:
        made = manage("shell", "--no-imports", "-c", MAKE_USERS, data_dir=host.data_dir)
        assert made.returncode == 0, made.stderr
        yield host


@pytest.fixture(scope="module")
def admin(host: HostProcess) -> Admin:
    return Admin(host, "steerer")


@pytest.fixture
def steered(host: HostProcess, admin: Admin) -> Iterator[str]:
    """A server that is put back to its defaults afterwards."""
    yield "version_2"
    steer(host, admin, "version_2")


def row(host: HostProcess, server: str) -> dict[str, Any]:
    return host.rows("SELECT * FROM records_serverrecord WHERE name = ?", server)[0]


def change_path(host: HostProcess, server: str) -> str:
    return f"/admin/records/serverrecord/{row(host, server)['id']}/change/"


def steer(host: HostProcess, admin: Admin, server: str, *, is_enabled: bool = True, **limits: str) -> str:
    """Send the form of a server as a browser does, and return the page that comes back."""
    fields = {**dict.fromkeys(LIMITS, ""), **({"is_enabled": "on"} if is_enabled else {}), **limits}
    return admin.post(change_path(host, server), fields)


def act(host: HostProcess, admin: Admin, action: str, server: str) -> str:
    fields = {"action": action, "_selected_action": str(row(host, server)["id"])}
    return admin.post("/admin/records/serverrecord/", fields)


def call(stream: Any, tool: str, **arguments: Any) -> Any:
    return stream.request("tools/call", {"name": tool, "arguments": arguments})["result"]


# -- Switching off and on --------------------------------------------------------------------------------------------


def test_server_that_is_switched_off_answers_503_and_its_sessions_close(
    host: HostProcess, admin: Admin, steered: str
) -> None:
    with (
        host.session(steered, "off:key") as sse,
        HandshakeSession(host, steered, "off:key") as streamable,
        host.session("bystander", "off:key") as other,
    ):
        standalone = streamable.get()
        assert standalone.status == 200
        sse.send(tool_call("under-way", "wait", seconds=60))
        begun = host.metric("gumcp_stateless_requests_total", server=steered)
        stateless = StatelessClient(host, steered, "off:key").start("wait", seconds=60)
        until(lambda: host.metric("gumcp_stateless_requests_total", server=steered) == begun + 1)
        refused = host.metric("gumcp_refused_requests_total", reason="server_disabled")
        started = time.monotonic()
        steer(host, admin, steered, is_enabled=False)
        sse.wait_closed(IN_FORCE_SECONDS)
        ended = stateless.answer()
        assert (ended.status, ended.json["error"]["message"]) == (503, SWITCHED_OFF)
        while standalone.event() is not None:
            pass
        standalone.leave()
        assert time.monotonic() - started < within(IN_FORCE_SECONDS)
        for answer in (
            host.stream(steered, "off:key").refusal(),
            streamable.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}).answer(),
            StatelessClient(host, steered, "off:key").start("echo", text="x").answer(),
            sse.post(tool_call(1, "echo", text="x")),
            host.stream(steered, "newcomer").refusal(),
        ):
            assert answer.status == 503
            assert SWITCHED_OFF in json.dumps(answer.json)
            assert answer.headers.get_content_type() == "application/json"
        assert other.call("echo", text="unaffected") == "unaffected"
        ended = [("closed", "the server was switched off")] * 2
        until(lambda: [(row["state"], row["end_reason"]) for row in sessions_of(host, steered, "off")] == ended, 2)
        assert host.metric("gumcp_refused_requests_total", reason="server_disabled") == refused + 6

    steer(host, admin, steered, is_enabled=True)
    until(
        lambda: StatelessClient(host, steered, "back:key").start("echo", text="x").answer().status == 200,
        IN_FORCE_SECONDS,
    )
    with host.session(steered, "off:key") as sse:
        assert sse.call("echo", text="back") == "back"
    assert StatelessClient(host, steered, "off:key").call("echo", text="back") == "back"


def sessions_of(host: HostProcess, server: str, user_id: str) -> list[dict[str, Any]]:
    query = "SELECT * FROM records_sessionrecord WHERE server_name = ? AND user_id = ? AND transport <> 'stateless'"
    return host.rows(query, server, user_id)


def test_actions_of_the_list_switch_servers_off_and_on(host: HostProcess, admin: Admin) -> None:
    assert "1 servers switched" in act(host, admin, "disable_servers", "moody")
    client = StatelessClient(host, "moody", "ada:key")
    until(lambda: client.start("built").answer().status == 503, IN_FORCE_SECONDS)
    assert "0 servers switched" in act(host, admin, "disable_servers", "moody")
    assert "1 servers switched" in act(host, admin, "enable_servers", "moody")
    until(lambda: client.start("built").answer().status == 200, IN_FORCE_SECONDS)


def test_server_that_was_switched_off_stays_so_when_its_host_starts_again(
    start_host: StartHost, host: HostProcess, admin: Admin, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("again")
    with start_host(data_dir=folder) as first:
        made = manage("shell", "--no-imports", "-c", MAKE_USERS, data_dir=folder)
        assert made.returncode == 0, made.stderr
        until(lambda: first.rows("SELECT * FROM records_serverrecord WHERE name = 'bystander'"))
        steer(first, Admin(first, "steerer"), "bystander", is_enabled=False)
    with start_host(data_dir=folder) as second:
        assert second.stream("bystander", "ada:key").refusal().status == 503
        assert StatelessClient(second, "workshop", "ada:key").call("echo", text="on") == "on"


# -- Limits ----------------------------------------------------------------------------------------------------------


def test_limits_that_are_set_are_in_force_within_five_seconds_in_open_sessions(
    host: HostProcess, admin: Admin, steered: str
) -> None:
    with host.session(steered, "limited:key") as stream, host.session("version_1", "limited:key") as other:
        assert call(stream, "wait", seconds=0.7)["content"][0]["text"] == "waited"
        steer(host, admin, steered, call_timeout_seconds="0.5")
        until(lambda: call(stream, "wait", seconds=0.7)["isError"], IN_FORCE_SECONDS)
        said = call(stream, "wait", seconds=0.7)["content"][0]["text"]
        assert said == "The call of wait took longer than 0.5 seconds and was stopped."
        assert call(other, "wait", seconds=0.7)["content"][0]["text"] == "waited"

        steer(host, admin, steered, max_concurrent_calls="1")
        until(lambda: not call(stream, "wait", seconds=0.7)["isError"], IN_FORCE_SECONDS)
        stream.send(tool_call("long", "wait", seconds=60))
        until(lambda: "running 1 calls already" in call(stream, "echo", text="x")["content"][0]["text"])
        steer(host, admin, steered, max_concurrent_calls_per_user="1")
        until(lambda: "You have 1 calls" in call(stream, "echo", text="x")["content"][0]["text"], IN_FORCE_SECONDS)
        steer(host, admin, steered)
        until(lambda: call(stream, "echo", text="x")["content"][0]["text"] == "x", IN_FORCE_SECONDS)


def test_bound_of_threads_can_be_raised_while_calls_run(host: HostProcess, admin: Admin, tmp_path: Path) -> None:
    release = tmp_path / "release"
    with host.session("version_1", "threads:key") as stream:
        steer(host, admin, "version_1", max_threads="1")
        stream.send(tool_call("long", "block_until_file", path=str(release)))
        until(lambda: "limit 1" in call(stream, "echo", text="x")["content"][0]["text"], IN_FORCE_SECONDS)
        steer(host, admin, "version_1")
        until(lambda: call(stream, "echo", text="x")["content"][0]["text"] == "x", IN_FORCE_SECONDS)
        release.touch()
        assert stream.answer("long")["result"]["content"][0]["text"] == "released"


def test_calls_can_be_made_to_wait_for_the_call_that_blocks_the_loop(
    host: HostProcess, admin: Admin, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    with host.session("version_1", "waits:key") as stream, host.session("version_1", "other:key") as other:
        stream.send(tool_call("long", "block_until_file", path=str(release)))
        assert call(other, "echo", text="x")["content"][0]["text"] == "x"
        steer(host, admin, "version_1", when_blocked="wait", call_timeout_seconds="0.5")
        until(lambda: call(other, "echo", text="x")["isError"], IN_FORCE_SECONDS)
        release.touch()
        assert stream.answer("long")
        assert call(other, "echo", text="x")["content"][0]["text"] == "x"
        steer(host, admin, "version_1")
        until(lambda: not call(other, "wait", seconds=0.7)["isError"], IN_FORCE_SECONDS)


# -- The form --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("call_timeout_seconds", "-1"),
        ("call_timeout_seconds", "soon"),
        ("call_timeout_seconds", "nan"),
        ("call_timeout_seconds", "inf"),
        ("max_concurrent_calls", "-1"),
        ("max_concurrent_calls", "1.5"),
        ("max_concurrent_calls_per_user", "many"),
        ("max_concurrent_calls", "99999999999999999999999"),
        ("max_threads", "0"),
        ("max_threads", "-3"),
    ],
)
def test_values_that_make_no_sense_are_refused_with_a_reason(
    host: HostProcess, admin: Admin, field: str, value: str
) -> None:
    before = row(host, "workshop")
    page = steer(host, admin, "workshop", **{field: value})
    assert "errorlist" in page
    assert row(host, "workshop") == before


def test_only_how_a_server_is_run_can_be_edited(host: HostProcess, admin: Admin) -> None:
    page = admin.get(change_path(host, "workshop"))
    names = set(re.findall(r'<(?:input|select|textarea)[^>]*\sname="([^"]+)"', page))
    assert {name for name in names if not name.startswith(("_", "csrf"))} == {"is_enabled", *LIMITS}
    before = row(host, "workshop")
    texts = ["name", "folder", "status", "reason", "traceback", "version", "tools", "condition", "load_seconds"]
    forged = {
        **dict.fromkeys(texts, "forged"),
        "reload_requested_at_0": "2030-01-01",
        "reload_requested_at_1": "00:00",
    }
    steer(host, admin, "workshop", max_concurrent_calls="7", **forged)
    after = row(host, "workshop")
    assert after == {**before, "max_concurrent_calls": 7, "condition": after["condition"]}
    assert "forged" not in str(after)
    steer(host, admin, "workshop")


def test_what_was_changed_is_in_the_history(host: HostProcess, admin: Admin) -> None:
    steer(host, admin, "workshop", call_timeout_seconds="33")
    page = unescape(admin.get(change_path(host, "workshop").replace("change", "history")))
    assert "Changed Call timeout seconds" in page
    steer(host, admin, "workshop")


@pytest.mark.parametrize("name", ["viewer", "stranger"])
def test_staff_without_the_permission_to_change_servers_cannot_steer(host: HostProcess, name: str) -> None:
    staff = Admin(host, name)
    before = row(host, "bystander")
    with pytest.raises(HTTPError, match="403"):
        steer(host, staff, "bystander", is_enabled=False)
    for action in ("disable_servers", "reload_servers"):
        if name == "viewer":
            assert action not in staff.get("/admin/records/serverrecord/")
            act(host, staff, action, "bystander")
        else:
            with pytest.raises(HTTPError, match="403"):
                act(host, staff, action, "bystander")
    assert row(host, "bystander") == before


def test_nobody_can_add_or_delete_a_server(host: HostProcess, admin: Admin) -> None:
    for path in ("/admin/records/serverrecord/add/", change_path(host, "bystander").replace("change", "delete")):
        with pytest.raises(HTTPError, match="403"):
            admin.post(path, {"post": "yes"})
    assert row(host, "bystander")["status"] == "loaded"


def test_saving_the_form_does_not_put_back_what_the_host_has_written_meanwhile(host: HostProcess, admin: Admin) -> None:
    """The form saves the fields that were changed and no others: a row has two writers."""
    query = "SELECT * FROM records_serverrecord WHERE name = 'workshop'"
    saved = manage(
        "shell",
        "--no-imports",
        "-c",
        SAVE_WITH_ANOTHER_WRITER,
        data_dir=host.data_dir,
        GUMCP_SERVER_DIRS=str(PLAIN_SERVERS),
    )
    assert saved.returncode == 0, saved.stderr
    assert host.rows(query)[0]["condition"] == "written meanwhile"
    assert host.rows(query)[0]["max_concurrent_calls"] == 5
    steer(host, admin, "workshop")


SAVE_WITH_ANOTHER_WRITER = """
import gumcp_site.urls  # the admin's pages are imported with it
from django.contrib.admin import site
from django.http import HttpRequest
from gateway.records.models import ServerRecord
stale = ServerRecord.objects.get(name="workshop")
ServerRecord.objects.filter(name="workshop").update(condition="written meanwhile")
stale.max_concurrent_calls = 5
form = type("Form", (), {"changed_data": ["max_concurrent_calls"]})()
site._registry[ServerRecord].save_model(HttpRequest(), stale, form, change=True)
"""


# -- The database ----------------------------------------------------------------------------------------------------


def test_no_request_waits_for_the_database(host: HostProcess, admin: Admin, steered: str) -> None:
    steer(host, admin, steered, call_timeout_seconds="7")
    with (
        host.session(steered, "locked:key") as stream,
        HandshakeSession(host, steered, "locked:key") as session,
        closing(sqlite3.connect(host.data_dir / "gumcp.sqlite3", timeout=10)) as database,
    ):
        database.execute("BEGIN EXCLUSIVE")
        end = time.monotonic() + 3
        number = 0
        while time.monotonic() < end:
            number += 1
            started = time.monotonic()
            assert stream.call("echo", text="x") == "x"
            assert session.call("echo", text="x") == "x"
            assert StatelessClient(host, steered, f"locked-{number % 20}:key").call("echo", text="x") == "x"
            with host.session(steered, f"locked-{number % 20}:key"):
                pass
            assert time.monotonic() - started < within(1)
        assert number > 20
        database.rollback()
