"""Streamable HTTP as operators see it: metrics by transport and protocol version, rows, ending a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.admin_site import MAKE_USERS, Admin
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import PLAIN_SERVERS, ROOT, manage, until
from tests.support.streamable import HandshakeSession, Request, StatelessClient, initialize_message, post

ROW_SECONDS = 2.0
"""How soon rows show what happened."""


@pytest.fixture(scope="module")
def host(start_host: StartHost) -> Iterator[HostProcess]:
    with start_host(
        server_dirs=f"{PLAIN_SERVERS}:{ROOT / 'tests' / 'servers' / 'eras'}", GUMCP_INSTANCE_IDLE_SECONDS="1"
    ) as host:
        made = manage("shell", "--no-imports", "-c", MAKE_USERS, data_dir=host.data_dir)
        assert made.returncode == 0, made.stderr
        yield host


def open_sessions(host: HostProcess, transport: str, version: str) -> float:
    return host.metric("gumcp_sessions", server="ledger", transport=transport, protocol_version=version)


def session_row(host: HostProcess, user_id: str) -> dict[str, object]:
    rows = host.rows("SELECT * FROM records_sessionrecord WHERE user_id = ? ORDER BY opened_at DESC", user_id)
    return rows[0] if rows else {}


def instance_row(host: HostProcess, user_id: str) -> dict[str, object]:
    rows = host.rows("SELECT * FROM records_instancerecord WHERE user_id = ? ORDER BY started_at DESC", user_id)
    return rows[0] if rows else {}


def test_open_sessions_are_counted_by_transport_and_protocol_version(host: HostProcess) -> None:
    until(lambda: host.metric("gumcp_sessions") == 0)  # what other tests have left is on its way out
    opened = host.metric("gumcp_sessions_opened_total", server="ledger", transport="streamable-http")
    with (
        HandshakeSession(host, "ledger", "counted", "2025-06-18"),
        HandshakeSession(host, "ledger", "counted", "2025-11-25"),
        HandshakeSession(host, "ledger", "counted", "2025-11-25"),
        host.session("ledger", "counted", version="2024-11-05"),
    ):
        assert open_sessions(host, "streamable-http", "2025-06-18") == 1
        assert open_sessions(host, "streamable-http", "2025-11-25") == 2
        assert open_sessions(host, "sse", "2024-11-05") == 1
        assert open_sessions(host, "sse", "2025-11-25") == 0
    until(lambda: host.metric("gumcp_sessions") == 0)
    assert host.metric("gumcp_sessions_opened_total", server="ledger", transport="streamable-http") == opened + 3


def test_streams_of_every_kind_are_in_the_gauge_and_plain_answers_are_not(host: HostProcess) -> None:
    def gauge() -> float:
        return host.metric("gumcp_active_connections", server="ledger")

    with HandshakeSession(host, "ledger", "gauged") as session:
        stateless = StatelessClient(host, "ledger", "gauged")
        until(lambda: gauge() == 0)  # what other tests have left is on its way out
        session.call("echo", text="x")
        assert gauge() == 0
        with session.get() as standalone, session.start("hold", name="gauged") as call:
            assert standalone.event() is not None
            assert call.event() is not None
            assert gauge() == 2
            stateless.call("release", name="gauged")
            call.messages()
            until(lambda: gauge() == 1)
        until(lambda: gauge() == 0)


def test_stateless_requests_are_counted_by_version_and_never_by_what_a_client_made_up(host: HostProcess) -> None:
    client = StatelessClient(host, "ledger", "made-up")
    before = host.metric("gumcp_stateless_requests_total", server="ledger", protocol_version="2026-07-28")
    client.call("echo", text="x")
    client.request("tools/list").answer()
    counted = host.metric("gumcp_stateless_requests_total", server="ledger", protocol_version="2026-07-28")
    assert counted == before + 2
    for version in ("made-up-version", "2099-01-01"):
        client.request("tools/list", headers={"MCP-Protocol-Version": version}).answer()
        opened = post(host, client.target, initialize_message(version)).answer()
        session = {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
        assert Request(host.port, "DELETE", client.target, headers=session).answer().status == 200
    assert "made-up" not in host.metrics_text()
    assert "2099-01-01" not in host.metrics_text()


def test_session_row_tells_transport_version_and_traffic(host: HostProcess) -> None:
    with HandshakeSession(host, "ledger", "rowed:canary", "2025-06-18") as session:
        session.call("echo", text="x")
        until(lambda: session_row(host, "rowed").get("calls") == 1, ROW_SECONDS)
        row = session_row(host, "rowed")
        assert (row["transport"], row["protocol_version"], row["state"]) == ("streamable-http", "2025-06-18", "open")
        assert (row["client_name"], row["messages_in"], row["messages_out"]) == ("wire", 3, 2)
        content = b"".join(path.read_bytes() for path in host.data_dir.glob("gumcp.sqlite3*"))
        assert b"canary" not in content
        assert session.id.encode() not in content
    until(lambda: session_row(host, "rowed")["state"] == "closed", ROW_SECONDS)


def test_stateless_traffic_is_activity_of_its_instance(host: HostProcess) -> None:
    client = StatelessClient(host, "ledger", "stateless-user:canary-key")
    for _ in range(3):
        client.call("echo", text="x")
    client.request("tools/list").answer()
    until(lambda: instance_row(host, "stateless-user").get("requests") == 4, ROW_SECONDS)
    row = instance_row(host, "stateless-user")
    assert (row["server_name"], row["calls"]) == ("ledger", 3)
    assert str(row["last_request_at"]) >= str(row["started_at"])
    assert row["ended_at"] is None or row["ended_at"] > row["started_at"]
    page = Admin(host, "root").get("/admin/records/instancerecord/")
    assert "stateless-user" in page
    assert "canary-key" not in page
    until(lambda: instance_row(host, "stateless-user")["ended_at"], 5)


def test_operator_ends_a_streamable_http_session(host: HostProcess) -> None:
    admin = Admin(host, "root")
    session = HandshakeSession(host, "ledger", "ended:key")
    with (
        session.get() as standalone,
        session.start("hold", name="ended", quiet=True) as call,
        HandshakeSession(host, "ledger", "ended:key") as other,
    ):
        assert standalone.event() is not None
        rows = until(
            lambda: host.rows("SELECT id FROM records_sessionrecord WHERE user_id = 'ended' ORDER BY opened_at"),
            ROW_SECONDS,
        )
        page = admin.get("/admin/records/sessionrecord/?user_id=ended&transport=streamable-http")
        assert "streamable-http" in page
        fields = {"action": "end_sessions", "_selected_action": str(rows[0]["id"])}
        admin.post("/admin/records/sessionrecord/", fields)
        assert standalone.message() is None
        assert call.reply()["error"]["code"] == -32000
        assert session.start("echo", text="x").answer().status == 404
        assert other.call("echo", text="untouched") == "untouched"
        row = until(
            lambda: host.rows(
                "SELECT * FROM records_sessionrecord WHERE user_id = 'ended' AND state = 'closed' ORDER BY opened_at"
            ),
            ROW_SECONDS,
        )[0]
        assert "operator" in row["end_reason"]
