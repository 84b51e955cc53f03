"""How many Streamable HTTP sessions a host keeps and for how long: the limit, idle expiry, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import BUNDLED_SERVERS, PLAIN_SERVERS, ROOT, until
from tests.support.streamable import ACCEPT_BOTH, HandshakeSession, Request, StatelessClient, initialize_message, post
from tests.support.wire import request as message

SERVER_DIRS = f"{BUNDLED_SERVERS}:{PLAIN_SERVERS}:{ROOT / 'tests' / 'servers' / 'eras'}"
LIMIT = 4


@pytest.fixture(scope="module")
def small_host(start_host: StartHost) -> Iterator[HostProcess]:
    """A host that keeps few sessions."""
    with start_host(server_dirs=SERVER_DIRS, GUMCP_MAX_SESSIONS=str(LIMIT)) as host:
        yield host


@pytest.fixture(scope="module")
def quick_host(start_host: StartHost) -> Iterator[HostProcess]:
    """A host that soon forgets idle sessions and instances."""
    with start_host(
        server_dirs=SERVER_DIRS,
        GUMCP_SESSION_IDLE_SECONDS="0.4",
        GUMCP_INSTANCE_IDLE_SECONDS="0.1",
        GUMCP_PING_SECONDS="0.3",
    ) as host:
        yield host


def open_sessions(host: HostProcess) -> float:
    return host.metric("gumcp_sessions")


def in_use(session: HandshakeSession) -> Request:
    """Open the session's standalone stream."""
    stream = session.get()
    assert stream.status == 200
    return stream


def test_longest_idle_session_makes_room_for_a_new_one(small_host: HostProcess) -> None:
    sessions = [HandshakeSession(small_host, "ledger", f"early{number}") for number in range(LIMIT)]
    streams = [in_use(sessions[0])]
    assert sessions[1].call("echo", text="used") == "used"
    try:
        late = [HandshakeSession(small_host, "ledger", f"late{number}") for number in range(2)]
        assert open_sessions(small_host) == LIMIT
        statuses = [session.start("echo", text="x").answer().status for session in sessions]
        assert statuses == [200, 200, 404, 404]
        rows = until(
            lambda: small_host.rows("select * from records_sessionrecord where user_id = 'early2' and closed_at")
        )
        assert rows[0]["end_reason"] == "made room for a newer session"
        streams += [in_use(session) for session in (sessions[1], *late)]
        assert post(small_host, "/ledger/refused", initialize_message()).answer().status == 503
    finally:
        for stream in streams:
            stream.leave()
        for session in (*sessions, *late):
            session.delete()
    assert open_sessions(small_host) == 0


def test_session_over_the_limit_is_503_while_all_are_in_use(small_host: HostProcess) -> None:
    sessions = [HandshakeSession(small_host, "ledger", f"user{number}") for number in range(LIMIT)]
    streams = [in_use(session) for session in sessions]
    try:
        before = small_host.metric("gumcp_instances")
        refused = post(small_host, "/ledger/late", initialize_message()).answer()
        assert refused.status == 503
        assert refused.headers["retry-after"].isdecimal()
        assert refused.json["error"]["code"] == -32603
        assert "sessions" in refused.json["error"]["message"]
        assert "mcp-session-id" not in refused.headers
        stream = small_host.stream("ledger", "late")
        assert stream.refusal().status == 503
        # Those who are in are served, and who needs no session as well.
        assert sessions[0].call("echo", text="in") == "in"
        assert StatelessClient(small_host, "ledger", "stateless").call("echo", text="in too") == "in too"
        assert small_host.metric("gumcp_instances") <= before + 1
        assert sessions.pop().delete().status == 200
        sessions.append(HandshakeSession(small_host, "ledger", "late"))
    finally:
        for streaming in streams:
            streaming.leave()
        for session in sessions:
            session.delete()
    assert open_sessions(small_host) == 0


def listen(host: HostProcess, user: str) -> Request:
    wanted = {"notifications": {"toolsListChanged": True}}
    return StatelessClient(host, "everything", user).request("subscriptions/listen", wanted)


def opens_and_ends_a_session(host: HostProcess, user: str) -> bool:
    answer = post(host, f"/ledger/{user}", initialize_message()).answer()
    if answer.status == 200:
        host.request("DELETE", f"/ledger/{user}", headers={"Mcp-Session-Id": answer.headers["mcp-session-id"]})
    return answer.status == 200


def test_listener_takes_the_room_of_a_session_and_is_none(small_host: HostProcess) -> None:
    session = HandshakeSession(small_host, "ledger", "ada")
    streaming = in_use(session)
    listeners = [listen(small_host, f"ear{number}") for number in range(LIMIT - 1)]
    try:
        for listener in listeners:
            assert listener.message()["method"] == "notifications/subscriptions/acknowledged"
        assert open_sessions(small_host) == 1
        refused = listen(small_host, "late").answer()
        assert (refused.status, refused.headers["retry-after"]) == (503, "10")
        assert "sessions" in refused.json["error"]["message"]
        assert post(small_host, "/ledger/late", initialize_message()).answer().status == 503
        assert small_host.stream("ledger", "late").refusal().status == 503
        assert StatelessClient(small_host, "ledger", "late").call("echo", text="in") == "in"
        listeners.pop().leave()
        until(lambda: opens_and_ends_a_session(small_host, "late"))
    finally:
        for listener in listeners:
            listener.leave()
        streaming.leave()
        session.delete()


def test_limit_holds_for_clients_that_wait_for_the_same_slow_instance(small_host: HostProcess) -> None:
    with ThreadPoolExecutor(4 * LIMIT) as pool:
        answers = list(
            pool.map(lambda _: post(small_host, "/moody/slow", initialize_message()).answer(), range(4 * LIMIT))
        )
    assert sorted(answer.status for answer in answers) == [200] * LIMIT + [503] * 3 * LIMIT
    assert open_sessions(small_host) == LIMIT
    for answer in answers:
        if answer.status == 200:
            headers = {"Mcp-Session-Id": answer.headers["mcp-session-id"]}
            assert Request(small_host.port, "DELETE", "/moody/slow", headers=headers).answer().status == 200
    assert open_sessions(small_host) == 0


def test_idle_session_is_forgotten_and_its_instance_with_it(quick_host: HostProcess) -> None:
    session = HandshakeSession(quick_host, "ledger", "idle")
    assert session.call("echo", text="x") == "x"
    until(lambda: open_sessions(quick_host) == 0, seconds=4)
    answer = session.start("echo", text="x").answer()
    assert (answer.status, answer.json["error"]["message"]) == (404, "Session not found or expired")
    until(lambda: quick_host.metric("gumcp_instances") == 0, seconds=4)
    rows = until(
        lambda: quick_host.rows("select * from records_sessionrecord where user_id = 'idle' and state = 'closed'")
    )
    assert (rows[0]["transport"], rows[0]["end_reason"]) == ("streamable-http", "idle")


@pytest.mark.parametrize("held_by", ["standalone stream", "call", "streamed call"])
def test_session_with_a_request_open_is_not_idle(quick_host: HostProcess, held_by: str) -> None:
    session = HandshakeSession(quick_host, "ledger", "busy")
    under_way = (
        session.get()
        if held_by == "standalone stream"
        else session.start("hold", name=held_by, quiet=held_by == "call")
    )
    with under_way:
        # Idle sessions are looked for every second, and comments sent: two of them are two such looks.
        comments = 0
        while comments < 2:
            event = under_way.event(comments=True)
            assert event is not None, "the session was ended"
            comments += event.name == "comment"
        assert session.call("echo", text="still here") == "still here"
    if held_by != "standalone stream":
        session.call("release", name=held_by)
    until(lambda: open_sessions(quick_host) == 0, seconds=4)


def test_refused_requests_and_gets_leave_nothing_behind(small_host: HostProcess) -> None:
    before = (open_sessions(small_host), small_host.metric("gumcp_active_connections"))
    unknown = {"Mcp-Session-Id": "0" * 32}
    broken = (
        ("POST", b"{", {}),
        ("POST", b"[]", unknown),
        ("POST", b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}', {}),
        ("POST", b"", {"Accept": "text/html"}),
        ("GET", b"", unknown),
        ("GET", b"", {"Accept": "text/html"}),
        ("DELETE", b"", unknown),
    )
    for _ in range(20):
        for method, body, headers in broken:
            answer = Request(small_host.port, method, "/ledger/nobody", body, {**ACCEPT_BOTH, **headers}).answer()
            assert 400 <= answer.status < 500
    assert (open_sessions(small_host), small_host.metric("gumcp_active_connections")) == before
    assert "nobody" not in str(small_host.rows("select user_id from records_sessionrecord"))


def test_backlog_of_a_session_is_bounded_and_leaves_room_for_answers(start_host: StartHost) -> None:
    with (
        start_host(server_dirs=SERVER_DIRS, GUMCP_MAX_SESSION_BACKLOG="3") as host,
        HandshakeSession(host, "everything", "eager", capabilities={"elicitation": {}}) as session,
    ):
        held = [session.start("test_elicitation", message=str(number)) for number in range(3)]
        asked = [call.message() for call in held]
        refused = session.post(message("ping", None, "over")).answer()
        assert refused.status == 503
        assert refused.headers["retry-after"].isdecimal()
        # All that may be under way waits for the client, which can still say what it was asked for.
        for call, question in zip(held, asked, strict=True):
            session.respond(question, {"action": "decline"})
            assert "action=decline" in call.text()
            call.leave()
        assert session.post(message("ping", None, "again")).answer().status == 200


def test_session_whose_client_left_in_the_middle_of_a_call_is_idle_too(quick_host: HostProcess) -> None:
    session = HandshakeSession(quick_host, "ledger", "gone")
    session.start("hold", name="abandoned", quiet=False).leave()
    until(lambda: open_sessions(quick_host) == 0, seconds=6)
