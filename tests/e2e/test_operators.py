"""What an operator sees and does: rows, the admin's pages, ending a session."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.error import HTTPError

import pytest

from tests.support.admin_site import MAKE_USERS, Admin
from tests.support.deadlines import within
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import PLAIN_SERVERS, manage, until
from tests.support.wire import tool_call

ROW_SECONDS = 2.0
"""How soon rows show what happened."""


@pytest.fixture(scope="module")
def host(start_host: StartHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    broken = tmp_path_factory.mktemp("broken")
    (broken / "broken-server").mkdir()
    (broken / "broken-server" / "main.py").write_text("raise RuntimeError('broken <on> purpose')\n")
    with start_host(server_dirs=f"{PLAIN_SERVERS}:{broken}") as host:
        made = manage("shell", "--no-imports", "-c", MAKE_USERS, data_dir=host.data_dir)
        assert made.returncode == 0, made.stderr
        yield host


@pytest.fixture(scope="module")
def admin(host: HostProcess) -> Admin:
    return Admin(host, "root")


def session_row(host: HostProcess, user_id: str) -> dict[str, object]:
    rows = host.rows("SELECT * FROM records_sessionrecord WHERE user_id = ? ORDER BY opened_at DESC", user_id)
    return rows[0] if rows else {}


# -- Rows ------------------------------------------------------------------------------------------------------------


def test_session_row_is_true_within_two_seconds_of_every_event(host: HostProcess) -> None:
    with host.session("workshop", "rowed:key", name="the-client") as stream:
        row = until(lambda: session_row(host, "rowed"), ROW_SECONDS)
        until(lambda: session_row(host, "rowed")["protocol_version"] == "2025-11-25", ROW_SECONDS)
        row = session_row(host, "rowed")
        assert (row["server_name"], row["transport"], row["state"]) == ("workshop", "sse", "open")
        assert (row["client_name"], row["client_version"], row["address"]) == ("the-client", "0.1", "127.0.0.1")
        stream.call("echo", text="x")
        until(lambda: session_row(host, "rowed")["calls"] == 1, ROW_SECONDS)
        row = session_row(host, "rowed")
        assert (row["messages_in"], row["messages_out"]) == (3, 2)
        assert str(row["last_activity_at"]) > str(row["opened_at"])
        assert row["closed_at"] is None
    until(lambda: session_row(host, "rowed")["state"] == "closed", ROW_SECONDS)
    assert session_row(host, "rowed")["closed_at"]


def test_session_shorter_than_a_flush_has_a_row_too(host: HostProcess) -> None:
    host.session("workshop", "brief:key").close()
    until(lambda: session_row(host, "brief").get("state") == "closed", ROW_SECONDS)


def test_server_rows_tell_what_loaded_and_why_not(host: HostProcess) -> None:
    rows = {row["name"]: row for row in host.rows("SELECT * FROM records_serverrecord")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "bystander": "loaded",
        "moody": "loaded",
        "workshop": "loaded",
        "broken-server": "failed",
    }
    assert "RuntimeError" in rows["broken-server"]["reason"]
    assert "Traceback" in rows["broken-server"]["traceback"]
    assert rows["workshop"]["folder"] == str(PLAIN_SERVERS / "workshop")


def test_what_a_server_offers_is_known_after_its_first_user(host: HostProcess) -> None:
    with host.session("workshop", "offers:key"):
        query = "SELECT version, tools FROM records_serverrecord WHERE name = 'workshop'"
        until(lambda: '"echo"' in host.rows(query)[0]["tools"], ROW_SECONDS)
        assert host.rows(query)[0]["version"] == "7.1"


# -- Pages -----------------------------------------------------------------------------------------------------------


def test_list_of_servers_can_be_filtered_and_searched(admin: Admin) -> None:
    page = admin.get("/admin/records/serverrecord/")
    assert all(name in page for name in ("bystander", "workshop", "broken-server"))
    failed = admin.get("/admin/records/serverrecord/?status__exact=failed")
    assert "broken-server" in failed
    assert "bystander" not in failed
    found = admin.get("/admin/records/serverrecord/?q=bystander")
    assert "bystander" in found
    assert ">broken-server<" not in found


def test_detail_of_a_server_that_failed_shows_reason_and_traceback_escaped(host: HostProcess, admin: Admin) -> None:
    (row,) = host.rows("SELECT id FROM records_serverrecord WHERE name = 'broken-server'")
    page = admin.get(f"/admin/records/serverrecord/{row['id']}/change/")
    assert "broken &lt;on&gt; purpose" in page
    assert "broken <on> purpose" not in page
    assert "Traceback" in page


def test_detail_of_a_server_lists_its_tools(host: HostProcess, admin: Admin) -> None:
    with host.session("workshop", "lists:key"):
        (row,) = host.rows("SELECT id FROM records_serverrecord WHERE name = 'workshop'")
        until(
            lambda: "<strong>echo</strong>" in admin.get(f"/admin/records/serverrecord/{row['id']}/change/"),
            ROW_SECONDS,
        )


def test_list_of_sessions_can_be_filtered_and_searched(host: HostProcess, admin: Admin) -> None:
    with host.session("workshop", "listed:key"), host.session("bystander", "other-listed:key"):
        until(lambda: session_row(host, "listed") and session_row(host, "other-listed"), ROW_SECONDS)
        query = "state__exact=open&server_name=bystander"
        assert "other-listed" in admin.get(f"/admin/records/sessionrecord/?{query}")
        assert ">listed<" not in admin.get(f"/admin/records/sessionrecord/?{query}")
        assert "other-listed" in admin.get("/admin/records/sessionrecord/?q=other-listed")
        assert ">listed<" not in admin.get("/admin/records/sessionrecord/?q=other-listed")


def test_detail_of_a_session_shows_its_client_escaped(host: HostProcess, admin: Admin) -> None:
    with host.session("workshop", "detailed:key", name="<script>alert(1)</script>"):
        row = until(lambda: session_row(host, "detailed").get("client_name") and session_row(host, "detailed"))
        row_id = re.sub(r"(.{8})(.{4})(.{4})(.{4})(.{12})", r"\1-\2-\3-\4-\5", str(row["id"]))
        page = admin.get(f"/admin/records/sessionrecord/{row_id}/change/")
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "<script>alert(1)" not in page
        assert "<script>alert(1)" not in admin.get("/admin/records/sessionrecord/")


def test_sessions_are_read_only(host: HostProcess, admin: Admin) -> None:
    with host.session("workshop", "readonly:key"):
        row_id = until(lambda: session_row(host, "readonly"), ROW_SECONDS)["id"]
        assert 'name="_save"' not in admin.get(f"/admin/records/sessionrecord/{row_id}/change/")
        refused(admin, f"/admin/records/sessionrecord/{row_id}/change/")
        refused(admin, f"/admin/records/sessionrecord/{row_id}/delete/")
        refused(admin, "/admin/records/sessionrecord/add/")
        assert "delete_selected" not in admin.get("/admin/records/sessionrecord/")
        assert session_row(host, "readonly")["state"] == "open"


def test_what_was_found_of_a_server_is_read_only(host: HostProcess, admin: Admin) -> None:
    query = "SELECT id, name, folder, status, reason, version FROM records_serverrecord WHERE name = 'moody'"
    (before,) = host.rows(query)
    refused(admin, f"/admin/records/serverrecord/{before['id']}/delete/")
    refused(admin, "/admin/records/serverrecord/add/")
    assert "delete_selected" not in admin.get("/admin/records/serverrecord/")
    with suppress(HTTPError):
        changes = {"name": "changed", "folder": "/changed", "status": "failed", "reason": "changed", "version": "0"}
        admin.post(f"/admin/records/serverrecord/{before['id']}/change/", {**changes, "is_enabled": "on"})
    assert host.rows(query) == [before]


def refused(admin: Admin, path: str) -> None:
    with pytest.raises(HTTPError, match="403") as error:
        admin.post(path, {"post": "yes", "name": "changed"})
    error.value.close()


def test_staff_without_permission_sees_neither_list(host: HostProcess) -> None:
    stranger = Admin(host, "stranger")
    for model in ("serverrecord", "sessionrecord"):
        with pytest.raises(HTTPError, match="403"):
            stranger.get(f"/admin/records/{model}/")


# -- Ending sessions -------------------------------------------------------------------------------------------------


def end_session(admin: Admin, row_id: object) -> str:
    return admin.post("/admin/records/sessionrecord/", {"action": "end_sessions", "_selected_action": str(row_id)})


def test_operator_ends_a_session_and_its_stream_closes_within_two_seconds(host: HostProcess, admin: Admin) -> None:
    with host.session("workshop", "ended:key") as stream, host.session("workshop", "spared:key") as other:
        stream.send(tool_call(1, "wait", seconds=60, name="ended-by-operator"))
        row = until(lambda: session_row(host, "ended"), ROW_SECONDS)
        started = time.monotonic()
        assert "1 open sessions are being ended" in end_session(admin, row["id"])
        stream.wait_closed(2)
        assert time.monotonic() - started < within(2)
        assert stream.post(tool_call(2, "echo", text="x")).status == 404
        until(lambda: other.call("was_cancelled", name="ended-by-operator") == "True", 2)
        until(lambda: session_row(host, "ended")["state"] == "closed", ROW_SECONDS)
        assert "operator" in str(session_row(host, "ended")["end_reason"])
        assert session_row(host, "spared")["state"] == "open"


def test_session_whose_server_is_blocked_can_be_ended_too(host: HostProcess, admin: Admin) -> None:
    with host.session("workshop", "blocked-end:key") as stream:
        row = until(lambda: session_row(host, "blocked-end"), ROW_SECONDS)
        stream.send(tool_call(1, "block", seconds=3))
        end_session(admin, row["id"])
        stream.wait_closed(2)
    with host.session("workshop", "blocked-end:key") as stream:
        assert stream.call("echo", text="unblocked") == "unblocked"


def test_command_that_the_channel_layer_lost_is_caught_up(host: HostProcess) -> None:
    with host.session("workshop", "lost-command:key") as stream:
        until(lambda: session_row(host, "lost-command"), ROW_SECONDS)
        # As if another process had written the row and its message had never arrived.
        code = (
            "from gateway.records.models import SessionRecord;"
            "SessionRecord.objects.filter(user_id='lost-command').update(is_end_requested=True)"
        )
        assert manage("shell", "--no-imports", "-c", code, data_dir=host.data_dir).returncode == 0
        stream.wait_closed(5)


def test_session_that_has_ended_stays_as_it_is_when_ended_again(host: HostProcess, admin: Admin) -> None:
    host.session("workshop", "over:key").close()
    until(lambda: session_row(host, "over").get("state") == "closed", ROW_SECONDS)
    before = session_row(host, "over")
    assert "0 open sessions are being ended" in end_session(admin, before["id"])
    assert session_row(host, "over") == before


def test_staff_without_the_permission_cannot_end_a_session(host: HostProcess) -> None:
    viewer = Admin(host, "viewer")
    with host.session("workshop", "protected:key") as stream:
        row = until(lambda: session_row(host, "protected"), ROW_SECONDS)
        assert "protected" in viewer.get("/admin/records/sessionrecord/")
        assert "end_sessions" not in viewer.get("/admin/records/sessionrecord/")
        end_session(viewer, row["id"])
        assert not session_row(host, "protected")["is_end_requested"]
        assert stream.call("echo", text="alive") == "alive"


def test_stranger_who_is_not_logged_in_cannot_end_a_session(host: HostProcess) -> None:
    with host.session("workshop", "anonymous:key") as stream:
        until(lambda: session_row(host, "anonymous"), ROW_SECONDS)
        answer = host.request("POST", "/admin/records/sessionrecord/", b"action=end_sessions")
        assert answer.status in (302, 403)
        assert stream.call("echo", text="alive") == "alive"
