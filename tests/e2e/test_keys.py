"""Keys over real sockets: revocation, scopes of tools, owners, limits, rotation, and what modules get to see."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mcp.shared.inbound import encode_header_value

from tests.support.deadlines import within
from tests.support.host_process import HostProcess, StartHost
from tests.support.issued_keys import IssuedKey, change_row, expire, issue, revoke
from tests.support.processes import BUNDLED_SERVERS, PLAIN_SERVERS, manage, until
from tests.support.streamable import ACCEPT_BOTH, META, STATELESS, HandshakeSession, Request, StatelessClient, post
from tests.support.wire import JSON, SseStream, request, tool_call

TWO_SECONDS = 2.0


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    shutil.copy(migrated_database, folder / "gumcp.sqlite3")
    return folder


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def host(start_host: StartHost, data_dir: Path, request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    with start_host(data_dir=data_dir, asgi_server=request.param, GUMCP_AUTH="keys") as host:
        yield host


def stateless(
    host: HostProcess, key: IssuedKey, method: str, params: dict[str, Any], server: str = "workshop"
) -> Request:
    envelope = {f"{META}protocolVersion": STATELESS, f"{META}clientCapabilities": {}}
    headers = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": method, **key.bearer}
    if "name" in params:
        headers["Mcp-Name"] = encode_header_value(params["name"])
    return post(host, f"/{server}", request(method, {**params, "_meta": envelope}, 1), headers)


def invalidate(how: str, data_dir: Path, key: IssuedKey) -> None:
    if how == "revoked by the command":
        done = manage("revoke_key", key.public, data_dir=data_dir)
        assert done.returncode == 0, done.stderr
    elif how == "revoked":
        revoke(data_dir, key)
    elif how == "expired":
        expire(data_dir, key)
    elif how == "user disabled":
        change_row(data_dir, "UPDATE auth_user SET is_active = 0 WHERE username = ?", key.user)
    else:
        change_row(data_dir, "DELETE FROM access_apikey WHERE id = ?", key.id)


@pytest.mark.parametrize("how", ["revoked", "revoked by the command", "expired", "user disabled", "deleted"])
def test_revoked_key_ends_everything_within_two_seconds_and_nobody_elses(
    host: HostProcess, data_dir: Path, how: str
) -> None:
    name = "".join(character if character.isalnum() else "-" for character in f"{how}-{host.port}")
    key, other = issue(data_dir, name), issue(data_dir, "bystander")
    with (
        host.session("workshop", key.session_key) as sse,
        host.session("workshop", other.session_key) as others,
        SseStream(host.port, "/workshop", key.bearer) as idle,
    ):
        session = HandshakeSession(host, "workshop", key.session_key)
        standalone = Request(
            host.port, "GET", session.target, headers={**session.headers, "Accept": "text/event-stream"}
        )
        assert standalone.status == 200
        running = session.start("wait", seconds=30, name=name)
        call = stateless(host, key, "tools/call", {"name": "wait", "arguments": {"seconds": 30}})
        invalidate(how, data_dir, key)
        revoked = time.monotonic()
        for stream in (sse, idle):
            stream.wait_closed(TWO_SECONDS + 1)
        assert standalone.messages() == []
        assert "error" in running.reply()
        assert call.status == 401
        assert time.monotonic() - revoked < within(TWO_SECONDS + (0.5 if how == "revoked by the command" else 0))
        assert host.request("GET", f"/workshop/{key.session_key}").status == 401
        assert host.request("POST", sse.endpoint, b"{}", JSON).status == 401
        assert session.post(request("ping", None, 1)).answer().status == 401
        assert others.call("echo", text="still here") == "still here"
    for left in (standalone, running, call):
        left.leave()


def test_rotation_both_keys_work_until_the_old_is_revoked(host: HostProcess, data_dir: Path) -> None:
    old, new = issue(data_dir, "rotating"), issue(data_dir, "rotating")
    with host.session("workshop", old.session_key) as before, host.session("workshop", new.session_key) as after:
        assert before.call("echo", text="1") == after.call("echo", text="1")
        revoke(data_dir, old)
        before.wait_closed(TWO_SECONDS + 1)
        assert after.call("echo", text="2") == "2"


def test_factory_gets_the_user_and_the_key(host: HostProcess, data_dir: Path) -> None:
    key = issue(data_dir, "ada")
    in_url, in_header = (f"/workshop/{key.session_key}", {}), ("/workshop/ada", key.bearer)
    for path, headers in (in_url, in_header, ("/workshop", key.bearer)):
        with SseStream(host.port, path, headers) as stream:
            for message in (
                {**INITIALIZE, "id": 0},
                {"jsonrpc": "2.0", "method": "notifications/initialized"},
                tool_call(1, "compare_key", key=key.key),
                tool_call(2, "whoami"),
            ):
                body = json.dumps(message).encode()
                assert host.request("POST", stream.endpoint, body, {**JSON, **headers}).status == 202
            assert stream.answer(1)["result"]["content"][0]["text"] == "True"
            assert stream.answer(2)["result"]["content"][0]["text"].startswith("ada ")


def test_tools_outside_the_scope_are_hidden_and_refused_in_every_era(host: HostProcess, data_dir: Path) -> None:
    key = issue(data_dir, "ada", {"workshop": ["echo", "whoami"], "bystander": None})
    refused = {"name": "keep", "arguments": {"key": "a", "value": "b"}}

    with host.session("workshop", key.session_key) as stream:
        assert [tool["name"] for tool in stream.request("tools/list")["result"]["tools"]] == ["echo", "whoami"]
        assert stream.call("echo", text="x") == "x"
        assert stream.request("tools/call", refused)["error"]["code"] == -32602
        assert "error" in stream.request("tools/call", {"name": "no-such-tool"})
        assert "error" in stream.request("tools/call", {"name": ["keep"]})

    session = HandshakeSession(host, "workshop", key.session_key)
    with session.request("tools/list") as answer:
        assert [tool["name"] for tool in answer.reply()["result"]["tools"]] == ["echo", "whoami"]
    assert session.call("echo", text="x") == "x"
    with session.request("tools/call", refused, "r") as answer:
        assert (answer.status, answer.reply()["id"]) == (403, "r")

    with stateless(host, key, "tools/list", {}) as answer:
        assert [tool["name"] for tool in answer.reply()["result"]["tools"]] == ["echo", "whoami"]
    with stateless(host, key, "tools/call", {"name": "echo", "arguments": {"text": "x"}}) as answer:
        assert answer.text() == "x"
    with stateless(host, key, "tools/call", refused) as answer:
        assert (answer.status, answer.reply()["id"]) == (403, 1)

    # A whole server is not narrowed by another's tools.
    with host.session("bystander", key.session_key) as stream:
        assert stream.call("echo", text="x") == "x"


def test_name_beyond_ascii_is_in_the_scope_that_says_it(host: HostProcess, data_dir: Path) -> None:
    key = issue(data_dir, "ada", {"workshop": ["größe"]})
    with stateless(host, key, "tools/call", {"name": "größe", "arguments": {}}) as answer:
        # The scope lets it through to the server, which has no such tool.
        assert answer.reply()["result"]["content"][0]["text"] == "unknown tool"
    with stateless(host, key, "tools/call", {"name": "größer", "arguments": {}}) as answer:
        assert answer.status == 403


def test_head_that_names_an_allowed_tool_does_not_let_another_in(host: HostProcess, data_dir: Path) -> None:
    key = issue(data_dir, "ada", {"workshop": ["echo"]})
    envelope = {f"{META}protocolVersion": STATELESS, f"{META}clientCapabilities": {}}
    params = {"name": "whoami", "arguments": {}, "_meta": envelope}
    for method, name in (("tools/call", "echo"), ("tools/list", ""), ("", "")):
        headers = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": method, "Mcp-Name": name, **key.bearer}
        with post(host, "/workshop", request("tools/call", params, 1), headers) as answer:
            assert "error" in answer.reply()


def test_changed_scope_holds_for_open_sessions_within_two_seconds(host: HostProcess, data_dir: Path) -> None:
    key = issue(data_dir, "ada")
    with host.session("workshop", key.session_key) as stream:
        assert stream.call("whoami")
        change_row(data_dir, "UPDATE access_apikey SET scope = ? WHERE id = ?", '{"workshop": ["echo"]}', key.id)
        until(lambda: "error" in stream.request("tools/call", {"name": "whoami", "arguments": {}}), TWO_SECONDS)
        assert stream.call("echo", text="x") == "x"


def test_another_users_ids_are_answered_as_unknown_ones_byte_for_byte(host: HostProcess, data_dir: Path) -> None:
    ada, bob = issue(data_dir, "ada"), issue(data_dir, "bob")
    second = issue(data_dir, "ada")
    unknown = "0" * 32

    def same(method: str, target: str, of_ada: str, body: bytes, headers: dict[str, str], intruder: IssuedKey) -> None:
        answers = []
        for session_id in (of_ada, unknown):
            filled = {name: value.replace("SESSION", session_id) for name, value in headers.items()}
            answer = host.request(method, target.replace("SESSION", session_id), body, {**filled, **intruder.bearer})
            shown = sorted((name, value) for name, value in answer.headers.items() if name.lower() != "date")
            answers.append((answer.status, shown, answer.body))
        assert answers[0] == answers[1]
        assert answers[0][0] == 404

    ping = json.dumps(request("ping", None, 1)).encode()
    with host.session("workshop", ada.session_key) as stream:
        session = HandshakeSession(host, "workshop", ada.session_key)
        listed = session.request("tools/list").answer()
        assert listed.status == 200
        sse_id = stream.endpoint.partition("session_id=")[2]
        for intruder in (bob, second):
            user = intruder.user
            for path in ("/workshop", f"/workshop/{user}"):
                same("POST", f"{path}/messages/?session_id=SESSION", sse_id, ping, JSON, intruder)
                same("POST", path, session.id, ping, {**ACCEPT_BOTH, "Mcp-Session-Id": "SESSION"}, intruder)
                same(
                    "GET", path, session.id, b"", {"Accept": "text/event-stream", "Mcp-Session-Id": "SESSION"}, intruder
                )
                resume = {"Accept": "text/event-stream", "Mcp-Session-Id": "SESSION", "Last-Event-ID": "0-1"}
                same("GET", path, session.id, b"", resume, intruder)
                same("DELETE", path, session.id, b"", {"Mcp-Session-Id": "SESSION"}, intruder)
            # Ids of one transport are unknown to the other, and to another server.
            same("POST", "/workshop", sse_id, ping, {**ACCEPT_BOTH, "Mcp-Session-Id": "SESSION"}, intruder)
            same("POST", "/bystander", session.id, ping, {**ACCEPT_BOTH, "Mcp-Session-Id": "SESSION"}, ada)
        assert stream.call("echo", text="untouched") == "untouched"
        assert session.call("echo", text="untouched") == "untouched"


def test_instances_belong_to_a_key(host: HostProcess, data_dir: Path) -> None:
    ada, bob = issue(data_dir, "ada"), issue(data_dir, "bob")
    with host.session("workshop", ada.session_key) as one, host.session("workshop", bob.session_key) as other:
        one.call("keep", key="colour", value="blue")
        assert one.call("kept_value", key="colour") == "blue"
        assert other.call("kept_value", key="colour") == "nothing"


def test_call_that_is_streamed_ends_with_its_key_whose_last_use_is_written(
    start_host: StartHost, data_dir: Path
) -> None:
    key = issue(data_dir, "ada")
    with start_host(data_dir=data_dir, GUMCP_AUTH="keys", GUMCP_PING_SECONDS="0.3") as host:
        with stateless(host, key, "tools/call", {"name": "wait", "arguments": {"seconds": 30, "name": "s"}}) as call:
            assert call.is_stream
            revoke(data_dir, key)
            revoked = time.monotonic()
            assert call.messages() == []
            assert time.monotonic() - revoked < within(TWO_SECONDS)
        with host.session("workshop", issue(data_dir, "ada").session_key) as stream:
            until(lambda: stream.call("was_cancelled", name="s") == "True")
            # Its instance has gone with it: one lifespan is open, the asking one.
            until(lambda: stream.call("open_lifespans") == "1")
    # Its last use is written when the host ends, at the latest.
    [row] = host.rows("SELECT last_used_at FROM access_apikey WHERE id = ?", key.id)
    assert row["last_used_at"].endswith(":00")


def test_requests_of_a_known_key_read_no_rows_and_without_rows_nobody_comes_in(
    start_host: StartHost, data_dir: Path
) -> None:
    key = issue(data_dir, "ada")
    with (
        start_host(data_dir=data_dir, GUMCP_AUTH="keys") as host,
        host.session("workshop", key.session_key) as stream,
        closing(sqlite3.connect(data_dir / "gumcp.sqlite3", timeout=10, isolation_level=None)) as database,
    ):
        stream.call("echo", text="x")
        database.execute("ALTER TABLE access_apikey RENAME TO away")
        try:
            # Whoever read a row would fail now; what was confirmed a moment ago is served.
            started = time.monotonic()
            calls = 0
            while time.monotonic() - started < 0.5:
                assert stream.call("echo", text="x") == "x"
                calls += 1
            assert calls > 20
            until(lambda: stream.post(b"{}").status == 503)
            refused = host.request("GET", f"/workshop/{key.session_key}")
            assert (refused.status, refused.headers["retry-after"]) == (503, "10")
            assert host.request("GET", "/workshop/ada:mistyped").status == 401
            assert host.request("GET", "/health_check").status == 200
        finally:
            database.execute("ALTER TABLE away RENAME TO access_apikey")
        until(lambda: stream.post(b"{}").status == 400)
        assert stream.call("echo", text="back") == "back"


def test_database_file_that_was_replaced_is_the_one_that_counts(
    start_host: StartHost, tmp_path: Path, migrated_database: Path
) -> None:
    in_force = tmp_path / "gumcp.sqlite3"
    shutil.copy(migrated_database, in_force)
    key = issue(tmp_path, "ada")
    with (
        start_host(data_dir=tmp_path, GUMCP_AUTH="keys") as host,
        host.session("workshop", key.session_key) as stream,
    ):
        restored = tmp_path / "restored"
        with closing(sqlite3.connect(in_force)) as database:
            database.execute("VACUUM INTO ?", (str(restored),))
        for kept_beside in ("gumcp.sqlite3-wal", "gumcp.sqlite3-shm"):
            (tmp_path / kept_beside).unlink(missing_ok=True)
        restored.replace(in_force)
        revoke(tmp_path, key)
        other = issue(tmp_path, "bob")
        stream.wait_closed(TWO_SECONDS)
        until(lambda: host.request("GET", f"/workshop/{key.session_key}").status == 401, TWO_SECONDS)
        # Keys may be looked up for a second on a connection to the old file. Who is refused more than thirty times
        # meanwhile is refused for a minute.
        until(
            lambda: host.request("PUT", f"/workshop/{other.session_key}").status == 405,
            TWO_SECONDS,
            pause_seconds=0.25,
        )
        with host.session("workshop", other.session_key) as others:
            assert others.call("echo", text="new") == "new"


def test_log_says_of_keys_only_what_is_so(start_host: StartHost, tmp_path: Path, migrated_database: Path) -> None:
    """A database that can be read and not written: keys are checked, and what cannot be noted is said once."""
    shutil.copy(migrated_database, tmp_path / "gumcp.sqlite3")
    key = issue(tmp_path, "ada")
    with (
        start_host(data_dir=tmp_path, GUMCP_AUTH="keys", GUMCP_LIMIT_FAILED_KEYS="1/hour") as host,
        host.session("workshop", key.session_key) as stream,
    ):
        refuse = "CREATE TRIGGER refuse BEFORE INSERT ON access_limithit BEGIN SELECT RAISE(FAIL, 'full'); END"
        change_row(tmp_path, refuse)

        def times_said() -> int:
            time.sleep(0.2)
            host.request("GET", "/workshop/ada:mistyped")
            assert stream.call("echo", text="x") == "x"
            return host.log().count("refusals by limits cannot be written")

        until(times_said)
        # It is tried again every second or two, and not said again.
        end = time.monotonic() + 4
        while time.monotonic() < end:
            assert times_said() == 1
        assert "cannot be checked" not in host.log()
        assert "checked again" not in host.log()


def test_hidden_keys_reach_no_module(start_host: StartHost, data_dir: Path) -> None:
    key = issue(data_dir, "ada")
    with (
        start_host(data_dir=data_dir, GUMCP_AUTH="keys", GUMCP_HIDE_KEYS_FROM_SERVERS="true") as host,
        host.session("workshop", key.session_key) as stream,
    ):
        assert stream.call("compare_key", key=key.key) == "False"
        assert stream.call("compare_key", key=None) == "True"
        assert stream.call("request_says", text=key.key) == "False"
        with HandshakeSession(host, "workshop", key.session_key) as session:
            assert session.call("request_says", text=key.key) == "False"
        assert StatelessClient(host, "workshop", key.session_key).call("request_says", text=key.key) == "False"


def test_key_that_is_not_hidden_is_in_the_request_that_modules_see(host: HostProcess) -> None:
    key = issue(host.data_dir, "seen")
    with host.session("workshop", key.session_key) as stream:
        assert stream.call("request_says", text=key.key) == "True"


LIMITS = {
    "GUMCP_AUTH": "keys",
    "GUMCP_LIMIT_CALLS_PER_KEY": "3/hour",
    "GUMCP_LIMIT_REQUESTS_PER_KEY": "40/hour",
    "GUMCP_LIMIT_FAILED_KEYS": "5/hour",
    "GUMCP_MAX_SESSIONS_PER_KEY": "3",
}


def test_limits_hold_for_the_key_not_for_the_session(start_host: StartHost, data_dir: Path) -> None:
    busy, other = issue(data_dir, "busy"), issue(data_dir, "other")
    with start_host(data_dir=data_dir, **LIMITS) as host:
        with host.session("workshop", busy.session_key) as first, host.session("workshop", busy.session_key) as second:
            assert first.call("echo", text="1") == second.call("echo", text="1")
            third = HandshakeSession(host, "workshop", busy.session_key)
            assert third.call("echo", text="3") == "3"
            in_use = third.get()
            assert in_use.status == 200
            for answer in (
                first.request("tools/call", {"name": "echo", "arguments": {"text": "x"}}),
                third.start("echo", text="x").answer().json,
                stateless(host, busy, "tools/call", {"name": "echo", "arguments": {"text": "x"}}).answer().json,
            ):
                assert answer["result"]["isError"]
                assert "Try again in" in answer["result"]["content"][0]["text"]
            for refused in (
                host.request("GET", f"/workshop/{busy.session_key}", headers={"Accept": "text/event-stream"}),
                post(host, "/workshop", INITIALIZE, busy.bearer).answer(),
            ):
                assert (refused.status, refused.headers["retry-after"]) == (429, "10")
            statuses = [first.post(request("ping", None, number)).status for number in range(40)]
            assert statuses[-1] == 429
            assert sorted(set(statuses)) == [202, 429]
            refused = host.request("DELETE", "/workshop", headers=busy.bearer)
            assert refused.status == 429
            assert 3000 < int(refused.headers["retry-after"]) <= 3601
            in_use.leave()
        with host.session("workshop", other.session_key) as stream:
            assert stream.call("echo", text="free") == "free"
        statuses = [host.request("GET", "/workshop/ada:wrong").status for _ in range(10)]
        assert statuses == [401] * 5 + [429] * 5
        until(lambda: host.rows("SELECT * FROM access_limithit WHERE rule = 'failed keys'"))
        hits = {row["rule"]: row for row in host.rows("SELECT * FROM access_limithit")}
        assert set(hits) >= {"failed keys", "requests of a key", "calls of a key", "sessions of a key"}
        assert hits["failed keys"]["subject"] == "127.0.0.1"
        assert hits["calls of a key"]["subject"] == busy.public


INITIALIZE = request(
    "initialize",
    {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "k", "version": "1"}},
    1,
)


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def narrow_host(start_host: StartHost, data_dir: Path, request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    """A host where a key may have two sessions."""
    options = {"server_dirs": f"{PLAIN_SERVERS}:{BUNDLED_SERVERS}", "GUMCP_MAX_SESSIONS_PER_KEY": "2"}
    with start_host(data_dir=data_dir, asgi_server=request.param, GUMCP_AUTH="keys", **options) as host:
        yield host


def test_sessions_that_end_make_room(narrow_host: HostProcess, data_dir: Path) -> None:
    key = issue(data_dir, "ada")
    for _ in range(3):
        with (
            narrow_host.session("workshop", key.session_key) as one,
            narrow_host.session("workshop", key.session_key) as other,
        ):
            assert [stream.call("echo", text="x") for stream in (one, other)] == ["x", "x"]
            assert _delete_status(narrow_host, key) == 429
        until(lambda: _delete_status(narrow_host, key) == 200)


def test_listeners_count_like_sessions_of_their_key_until_they_leave(narrow_host: HostProcess, data_dir: Path) -> None:
    key, other = issue(data_dir, "listening"), issue(data_dir, "other")
    listeners = [_listen(narrow_host, key) for _ in range(2)]
    for listener in listeners:
        assert listener.message()["method"] == "notifications/subscriptions/acknowledged"
    refused = _listen(narrow_host, key).answer()
    assert (refused.status, refused.headers["retry-after"]) == (429, "10")
    assert "sessions" in refused.json["error"]["message"]
    assert _delete_status(narrow_host, key) == 429
    assert _delete_status(narrow_host, other) == 200
    listeners.pop().leave()
    until(lambda: _delete_status(narrow_host, key) == 200)
    listeners.pop().leave()
    rows = until(
        lambda: narrow_host.rows(
            "SELECT server_name FROM records_sessionrecord WHERE user_id = 'listening' AND transport <> 'stateless'"
        )
    )
    assert {row["server_name"] for row in rows} == {"workshop"}


def _listen(host: HostProcess, key: IssuedKey) -> Request:
    wanted = {"notifications": {"toolsListChanged": True}}
    return stateless(host, key, "subscriptions/listen", wanted, server="everything")


def _delete_status(host: HostProcess, key: IssuedKey) -> int:
    opened = post(host, "/workshop", INITIALIZE, key.bearer).answer()
    if opened.status != 200:
        return opened.status
    session = {"Mcp-Session-Id": opened.headers["mcp-session-id"], **key.bearer}
    return host.request("DELETE", "/workshop", headers=session).status
