"""Streamable HTTP with sessions, the handshake era, in bytes: what a client of any make sees. On Daphne and uvicorn."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import BUNDLED_SERVERS, PLAIN_SERVERS, ROOT, until
from tests.support.streamable import (
    ACCEPT_BOTH,
    HandshakeSession,
    Request,
    StatelessClient,
    bare,
    initialize_message,
    post,
)
from tests.support.wire import JSON, request, request_bytes, tool_call

ERA_SERVERS = ROOT / "tests" / "servers" / "eras"
BODY_LIMIT = 20_000
LEDGER = "/ledger/ada:key"


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def host(start_host: StartHost, request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    with start_host(
        asgi_server=request.param,
        server_dirs=f"{BUNDLED_SERVERS}:{PLAIN_SERVERS}:{ERA_SERVERS}",
        GUMCP_PING_SECONDS="0.5",
        GUMCP_MAX_BODY_BYTES=str(BODY_LIMIT),
    ) as host:
        yield host


@pytest.fixture
def session(host: HostProcess) -> Iterator[HandshakeSession]:
    with HandshakeSession(host, "ledger", "ada:key") as session:
        yield session


def open_sessions(host: HostProcess) -> float:
    return host.metric("gumcp_sessions", transport="streamable-http")


# -- One URL ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", HANDSHAKE_PROTOCOL_VERSIONS)
def test_initialize_opens_a_session_of_every_handshake_version(host: HostProcess, version: str) -> None:
    with HandshakeSession(host, "ledger", "ada:key", version) as session:
        assert session.result["protocolVersion"] == version
        assert session.result["serverInfo"]["name"] == "Ledger of options"
        assert session.result["serverInfo"]["version"] == "9.9"
        assert session.id.isascii()
        assert session.id.isprintable()
        assert len(session.id) >= 32
        assert session.call("echo", text=version) == version


def test_unknown_version_is_answered_with_the_newest_of_the_era(host: HostProcess) -> None:
    with HandshakeSession(host, "ledger", "ada:key", "2099-01-01-proposed", capabilities={}) as session:
        assert session.result["protocolVersion"] == "2025-11-25"


def test_one_url_serves_three_eras_at_once(host: HostProcess) -> None:
    with host.session("ledger", "ada:key") as stream, HandshakeSession(host, "ledger", "ada:key") as session:
        stateless = StatelessClient(host, "ledger", "ada:key")
        assert stream.call("echo", text="2024") == "2024"
        assert session.call("echo", text="2025") == "2025"
        assert stateless.call("echo", text="2026") == "2026"
        # One instance behind all of them: each client counts the same listings.
        stream.request("tools/list")
        counts = {stream.call("count", of="listings"), session.call("count", of="listings")}
        assert counts == {stateless.call("count", of="listings")}


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*", "text/*, application/json"])
def test_get_without_a_session_id_is_http_sse(host: HostProcess, accept: str) -> None:
    with Request(host.port, "GET", LEDGER, headers={"Accept": accept}) as stream:
        event = stream.event()
        assert event is not None
        assert event.name == "endpoint"
        assert event.data.startswith(f"{LEDGER}/messages/?session_id=")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param(tool_call(1, "echo", text="x"), {}, id="call"),
        pytest.param(request("ping", None, 1), {"MCP-Protocol-Version": "2025-11-25"}, id="ping"),
        pytest.param({"jsonrpc": "2.0", "method": "notifications/initialized"}, {}, id="notification"),
        pytest.param({"jsonrpc": "2.0", "id": 1, "result": {}}, {}, id="response"),
        pytest.param(request("no/such", None, 1), {"MCP-Protocol-Version": "1999-01-01"}, id="unknown version"),
        pytest.param(request("tools/list", None, 1), {"Mcp-Session-Id": ""}, id="empty session id"),
        pytest.param(b"{", {}, id="broken"),
        pytest.param(b"[]", {"MCP-Protocol-Version": "2026-07-28"}, id="stateless batch"),
        pytest.param({}, {"Content-Type": "text/plain"}, id="text"),
        pytest.param({}, {"Accept": "text/html"}, id="for a browser"),
    ],
)
@pytest.mark.parametrize("slash", ["", "/"])
def test_post_without_a_session_id_is_never_404_nor_redirected(
    host: HostProcess, body: Any, headers: dict[str, str], slash: str
) -> None:
    before = open_sessions(host)
    answer = post(host, LEDGER + slash, body, headers).answer()
    assert answer.status in (400, 406, 415)
    assert "location" not in answer.headers
    assert "mcp-session-id" not in answer.headers
    assert answer.headers.get_content_type() == "application/json"
    assert isinstance(answer.json["error"]["code"], int)
    assert answer.json["error"]["message"]
    assert open_sessions(host) == before


def test_empty_session_id_header_is_none(host: HostProcess) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    head += b"Accept: application/json, text/event-stream\r\nMcp-Session-Id: \r\nContent-Length: %d\r\n\r\n"
    body = json.dumps(initialize_message()).encode()
    answer = Request(host.port, "POST", "", raw=head % (LEDGER.encode(), len(body)) + body).answer()
    assert answer.status == 200
    assert answer.headers["mcp-session-id"]


def test_unknown_server_is_404_in_words_that_a_client_shows(host: HostProcess) -> None:
    answer = post(host, "/nowhere/ada:key", initialize_message()).answer()
    assert answer.status == 404
    assert "nowhere" not in answer.headers.as_string()
    assert isinstance(answer.json["error"]["code"], int)
    assert answer.json["error"]["message"]


@pytest.mark.parametrize("version", [None, "2025-11-25", "2026-07-28"])
def test_wrong_method_is_405_with_what_is_allowed(host: HostProcess, version: str | None) -> None:
    headers = {"MCP-Protocol-Version": version} if version else {}
    for method in ("PUT", "OPTIONS", "HEAD", "PATCH"):
        answer = Request(host.port, method, LEDGER, headers={"Accept": "*/*", **headers}).answer()
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, POST, DELETE"


# -- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "text/html", "application/xml, image/*"])
def test_client_that_does_not_accept_both_is_406(host: HostProcess, session: HandshakeSession, accept: str) -> None:
    for headers in ({}, session.headers, {"MCP-Protocol-Version": "2026-07-28"}):
        answer = post(host, LEDGER, initialize_message(), {**headers, "Accept": accept}).answer()
        assert answer.status == 406
        assert answer.json["error"]["code"] == -32600


@pytest.mark.parametrize("accept", ["*/*", "application/*, text/*", "text/event-stream;q=0.9,application/json", ""])
def test_client_that_accepts_both_in_other_words_is_served(session: HandshakeSession, accept: str) -> None:
    assert session.post(tool_call(1, "echo", text="x"), {"Accept": accept}).text() == "x"


def test_accept_header_on_several_lines_is_one_list(host: HostProcess, session: HandshakeSession) -> None:
    body = json.dumps(tool_call(1, "echo", text="split")).encode()
    whole = request_bytes("POST", LEDGER, body, {**JSON, **session.headers, "Accept": "application/json"})
    raw = whole.replace(b"Accept: application/json\r\n", b"Accept: application/json\r\nAccept: text/event-stream\r\n")
    with Request(host.port, "POST", LEDGER, raw=raw) as under_way:
        assert under_way.text() == "split"


def test_get_that_does_not_accept_a_stream_is_406(host: HostProcess, session: HandshakeSession) -> None:
    for headers in ({}, session.headers):
        answer = Request(host.port, "GET", LEDGER, headers={**headers, "Accept": "application/json"}).answer()
        assert answer.status == 406
        assert answer.json["error"]


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "", "application/x-www-form-urlencoded", "text/plain; x=,application/json", "application/jsonp"],
)
def test_body_that_is_not_said_to_be_json_is_415(
    host: HostProcess, session: HandshakeSession, content_type: str
) -> None:
    for headers in ({}, session.headers, {"MCP-Protocol-Version": "2026-07-28"}):
        answer = post(host, LEDGER, initialize_message(), {**headers, "Content-Type": content_type}).answer()
        assert answer.status == 415
        assert answer.json["error"]["code"] == -32600


BAD_BODIES = [
    pytest.param(b"", -32700, id="nothing"),
    pytest.param(b'{"jsonrpc": "2.0", "id": 1', -32700, id="half an object"),
    pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": "p\xff"}', -32700, id="invalid utf-8"),
    pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": "\xed\xa0\x80"}', -32700, id="surrogate in utf-8"),
    pytest.param(json.dumps(tool_call(1, "echo", text="x")).encode("utf-16"), -32700, id="utf-16"),
    pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": NaN}}', -32700, id="NaN"),
    pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": -Infinity}}', -32700, id="Infinity"),
    pytest.param(b"[" * 19_000, -32700, id="deep nesting"),
    pytest.param(b"[]", -32600, id="empty batch"),
    pytest.param(b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', -32600, id="batch"),
    pytest.param(b"null", -32600, id="null"),
    pytest.param(b"{}", -32600, id="empty object"),
    pytest.param(b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', -32600, id="wrong version"),
    pytest.param(b'{"jsonrpc": "2.0", "id": null, "method": "ping"}', -32600, id="null id"),
    pytest.param(b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', -32600, id="float id"),
    pytest.param(b'{"jsonrpc": "2.0", "id": true, "method": "ping"}', -32600, id="boolean id"),
    pytest.param(b'{"jsonrpc": "2.0", "id": {}, "method": "ping"}', -32600, id="object id"),
    pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}', -32600, id="params as a list"),
]


@pytest.mark.parametrize(("body", "code"), BAD_BODIES)
def test_message_that_is_none_is_400_in_every_era(
    host: HostProcess, session: HandshakeSession, body: bytes, code: int
) -> None:
    stateless = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "ping"}
    for headers in ({}, session.headers, stateless):
        answer = post(host, LEDGER, body, headers).answer()
        assert (answer.status, answer.json["jsonrpc"], answer.json["id"]) == (400, "2.0", None), answer
        assert answer.json["error"]["code"] == code
    assert session.call("echo", text="alive") == "alive"


def test_body_over_the_limit_is_413_and_the_session_lives_on(host: HostProcess, session: HandshakeSession) -> None:
    for headers in ({}, session.headers, {"MCP-Protocol-Version": "2026-07-28"}):
        for size in (BODY_LIMIT + 1, 3 * BODY_LIMIT):
            answer = post(host, LEDGER, json.dumps(initialize_message()).encode().ljust(size), headers).answer()
            assert answer.status == 413
    assert session.call("echo", text="alive") == "alive"


@pytest.mark.parametrize("framing", ["announced", "chunked"])
def test_client_that_sends_far_more_than_the_limit_can_read_the_refusal(
    host: HostProcess, session: HandshakeSession, framing: str
) -> None:
    body = b" " * 400 * BODY_LIMIT
    headers = {**ACCEPT_BOTH, **session.headers, "Connection": "close"}
    if framing == "chunked":
        headers |= {"Transfer-Encoding": "chunked", "Content-Length": ""}
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    assert Request(host.port, "POST", LEDGER, body, headers).answer().status == 413
    assert session.call("echo", text="alive") == "alive"


def test_refusal_of_the_host_is_a_json_rpc_error_that_clients_show(host: HostProcess) -> None:
    answer = post(host, "/moody/raises-user:canary", initialize_message()).answer()
    assert answer.status == 503
    assert answer.headers["retry-after"].isdecimal()
    assert answer.json["error"]["code"] == -32603
    assert "could not be started" in answer.json["error"]["message"]
    assert b"canary" not in answer.body


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": ""}, 400),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
    ],
)
def test_foreign_host_and_origin_are_refused_on_every_route(
    host: HostProcess, session: HandshakeSession, headers: dict[str, str], status: int
) -> None:
    before = open_sessions(host)
    eras = ({}, session.headers, {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "ping"})
    for method in ("POST", "GET", "DELETE"):
        for era in eras:
            body = json.dumps(initialize_message()).encode() if method == "POST" else b""
            fields = {**ACCEPT_BOTH, **era, **headers}
            assert Request(host.port, method, LEDGER, body, fields).answer().status == status
    assert open_sessions(host) == before
    assert session.call("echo", text="alive") == "alive"


def test_own_origin_is_served(session: HandshakeSession) -> None:
    assert session.post(tool_call(1, "echo", text="x"), {"Origin": "http://127.0.0.1"}).text() == "x"


# -- Sessions and who owns them --------------------------------------------------------------------------------------


def test_unknown_session_is_404(host: HostProcess) -> None:
    for session_id in ("0" * 32, "x", "é", "a" * 5000):
        headers = {"Mcp-Session-Id": session_id.encode().decode("latin-1")}
        for method in ("POST", "GET", "DELETE"):
            body = json.dumps(tool_call(1, "echo", text="x")).encode() if method == "POST" else b""
            answer = Request(host.port, method, LEDGER, body, {**ACCEPT_BOTH, **_ascii(headers)}).answer()
            assert answer.status == 404
            assert answer.json["error"]["message"] == "Session not found or expired"


def _ascii(headers: dict[str, str]) -> dict[str, str]:
    return {name: value.encode("ascii", "replace").decode() for name, value in headers.items()}


def test_somebody_elses_session_is_answered_as_one_that_does_not_exist(
    host: HostProcess, session: HandshakeSession
) -> None:
    with session.start("chatter", times=1) as call, host.stream("ledger", "ada:key") as sse:
        call.messages()
        event_id = call.last_event_id
        sse_id = sse.endpoint.partition("session_id=")[2]
        assert event_id is not None
        call_bytes = json.dumps(tool_call(1, "echo", text="mine")).encode()
        for target in ("/ledger/bob:key", "/ledger/ada:other", "/ledger/ada", "/workshop/ada:key", "/moody/ada:key"):
            for body in (call_bytes, b"{", json.dumps(initialize_message()).encode()):
                for stolen in (session.id, sse_id):
                    assert _differences(host, target, stolen, "POST", body) == []
            for extra in ({}, {"Last-Event-ID": event_id}, {"Last-Event-ID": "1-0"}):
                assert _differences(host, target, session.id, "GET", headers=extra) == []
            assert _differences(host, target, session.id, "DELETE") == []
            # The other way round: a Streamable HTTP session is none for HTTP+SSE, whoever asks.
            for body in (call_bytes, b"{"):
                path = f"{target}/messages/?session_id="
                foreign = Request(host.port, "POST", path + session.id, body, JSON).answer()
                assert bare(foreign) == bare(Request(host.port, "POST", path + "0" * 32, body, JSON).answer())
                assert foreign.status == 404
        # Its own owner's SSE session is no Streamable HTTP session either.
        assert _differences(host, LEDGER, sse_id, "POST", call_bytes) == []
        assert session.call("echo", text="still mine") == "still mine"


def _differences(
    host: HostProcess, target: str, stolen: str, method: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> list[Any]:
    """What tells a stolen session id from an unknown one."""
    fields = {**ACCEPT_BOTH, **(headers or {})}
    foreign = Request(host.port, method, target, body, {**fields, "Mcp-Session-Id": stolen}).answer()
    unknown = Request(host.port, method, target, body, {**fields, "Mcp-Session-Id": "0" * 32}).answer()
    assert unknown.status == 404
    return [] if bare(foreign) == bare(unknown) else [foreign, unknown]


def test_deleted_session_is_gone_for_every_method(host: HostProcess) -> None:
    session = HandshakeSession(host, "ledger", "ada:key")
    before = open_sessions(host)
    assert session.delete().status == 200
    assert open_sessions(host) == before - 1
    assert session.start("echo", text="x").answer().status == 404
    assert session.get().answer().status == 404
    assert session.delete().status == 404


def test_delete_without_a_session_id_is_400(host: HostProcess) -> None:
    answer = Request(host.port, "DELETE", LEDGER).answer()
    assert answer.status == 400
    assert answer.json["error"]["code"] == -32600


def test_deleting_a_session_answers_its_calls_and_ends_its_streams(host: HostProcess) -> None:
    session = HandshakeSession(host, "ledger", "ada:key")
    with (
        session.get() as standalone,
        session.start("hold", name="deleted loud") as streamed,
        session.start("hold", name="deleted quiet", quiet=True) as silent,
        HandshakeSession(host, "ledger", "ada:key") as other,
    ):
        assert streamed.message()["method"] == "notifications/message"
        until(lambda: other.call("count", of="held deleted quiet") == "1")
        assert session.delete().status == 200
        assert streamed.reply()["error"]["code"] == -32000
        assert silent.reply()["error"]["code"] == -32000
        assert standalone.message() is None
        until(lambda: other.call("count", of="cancelled deleted quiet") == "1")


def test_session_is_ended_at_once_also_while_its_server_is_blocked(host: HostProcess) -> None:
    with HandshakeSession(host, "workshop", "ada") as other:
        session = HandshakeSession(host, "workshop", "ada")
        with (
            session.get() as standalone,
            session.start("wait", seconds=60) as call,
            other.start("block", seconds=4) as blocking,
        ):
            assert standalone.event() is not None
            until(lambda: host.metric("gumcp_lane_lag_seconds", server="workshop") > 0.1)
            assert session.delete().status == 200
            assert standalone.message() is None
            # It may have been silent for so long that it became a stream, which nobody can write to now.
            told = call.messages() if call.is_stream else [call.answer().json]
            assert not any("result" in message for message in told)
            assert session.start("echo", text="x").answer().status == 404
            assert host.metric("gumcp_lane_lag_seconds", server="workshop") > 0.1
            assert blocking.text() == "blocked"


def test_session_that_ends_while_a_message_comes_in_answers_404(host: HostProcess) -> None:
    session = HandshakeSession(host, "ledger", "ada:key")
    body = json.dumps(tool_call(1, "echo", text="late")).encode()
    whole = request_bytes("POST", LEDGER, body, {**ACCEPT_BOTH, **session.headers, "Connection": "close"})
    with Request(host.port, "POST", LEDGER, raw=whole[:-5]) as under_way:
        assert session.call("echo", text="in between") == "in between"
        assert session.delete().status == 200
        under_way.send_more(whole[-5:])
        assert under_way.answer().status == 404


def test_sessions_of_one_key_are_told_apart(host: HostProcess) -> None:
    def converse(number: int) -> list[str]:
        with HandshakeSession(host, "ledger", "crowd:key") as session:
            return [session.start("echo", request_id=call, text=f"{number}.{call}").text() for call in range(10)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(converse, range(8)))
    assert answers == [[f"{number}.{call}" for call in range(10)] for number in range(8)]


def test_initialize_that_fails_leaves_no_session(host: HostProcess) -> None:
    before = open_sessions(host)
    answer = post(host, LEDGER, request("initialize", {"protocolVersion": 5}, 1)).answer()
    assert "error" in answer.json
    until(lambda: open_sessions(host) == before)


# -- Requests and their answers --------------------------------------------------------------------------------------


def test_notifications_and_responses_are_202_without_a_body(session: HandshakeSession) -> None:
    for message in (
        {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"},
        {"jsonrpc": "2.0", "method": "notifications/no/such"},
        {"jsonrpc": "2.0", "id": 99, "result": {}},
        {"jsonrpc": "2.0", "id": "99", "error": {"code": 1, "message": "no"}},
    ):
        answer = session.post(message).answer()
        assert (answer.status, answer.body) == (202, b"")


@pytest.mark.parametrize("request_id", [0, 1, -1, "1", "text", "", 2**53, "0x10"])
def test_answer_carries_the_id_as_the_client_wrote_it(session: HandshakeSession, request_id: Any) -> None:
    reply = session.start("echo", request_id=request_id, text="x").reply()
    assert reply["id"] == request_id
    assert type(reply["id"]) is type(request_id)


def test_call_without_anything_before_its_result_is_answered_with_json(session: HandshakeSession) -> None:
    for method, params in (("tools/call", {"name": "echo", "arguments": {"text": "x"}}), ("tools/list", {})):
        answer = session.request(method, params).answer()
        assert answer.status == 200
        assert answer.headers.get_content_type() == "application/json"
        assert answer.headers["mcp-session-id"] == session.id
        assert answer.headers["cache-control"] == "no-store"
        assert "result" in answer.json
    assert session.request("no/such").answer().headers.get_content_type() == "application/json"


def test_call_becomes_a_stream_as_soon_as_its_handler_notifies(session: HandshakeSession) -> None:
    with session.start("hold", name="streamed") as call:
        assert call.is_stream  # while the handler still runs
        assert call.headers["cache-control"] == "no-store"
        assert call.headers["x-accel-buffering"] == "no"
        assert call.message()["params"]["data"] == "holding"
        assert session.call("release", name="streamed") == "released"
        assert call.text() == "held streamed"
        assert call.message() is None


def test_nothing_that_belongs_to_another_stream_makes_a_call_one(session: HandshakeSession) -> None:
    answer = session.start("announce", text="aside").answer()
    assert answer.headers.get_content_type() == "application/json"


def test_request_id_in_flight_is_refused_at_once_and_the_first_call_answered(session: HandshakeSession) -> None:
    for first, second in (("twice", "twice"), (1, "1"), ("7", 7)):
        with session.start("hold", request_id=first, name=f"twice {first}", quiet=True) as call:
            until(lambda first=first: session.call("count", of=f"held twice {first}") == "1")
            refused = session.start("echo", request_id=second, text="second").answer()
            assert refused.status == 400
            assert refused.json["id"] == second
            assert refused.json["error"]["code"] == -32600
            session.call("release", name=f"twice {first}")
            assert call.text() == f"held twice {first}"
        assert session.start("echo", request_id=first, text="free again").text() == "free again"


def test_same_request_id_on_two_sessions_is_two_requests(host: HostProcess, session: HandshakeSession) -> None:
    with HandshakeSession(host, "ledger", "ada:key") as other, session.start("hold", request_id=1, name="both") as call:
        call.message()
        assert other.start("echo", request_id=1, text="mine").text() == "mine"
        other.call("release", name="both")
        assert call.text() == "held both"


def test_second_initialize_is_an_error_and_the_session_lives_on(session: HandshakeSession) -> None:
    answer = session.post(initialize_message(request_id="again")).answer()
    assert (answer.status, answer.json["id"], answer.json["error"]["code"]) == (400, "again", -32600)
    assert session.call("echo", text="alive") == "alive"


def test_cancelled_call_is_answered_and_its_id_free(session: HandshakeSession) -> None:
    with session.start("hold", request_id="c", name="cancelled", quiet=True) as call:
        until(lambda: session.call("count", of="held cancelled") == "1")
        assert session.notify("notifications/cancelled", {"requestId": "c"}).status == 202
        assert "error" in call.reply()
    assert session.call("count", of="cancelled cancelled") == "1"
    assert session.start("echo", request_id="c", text="again").text() == "again"


@pytest.mark.parametrize("is_quiet", [True, False])
def test_call_goes_on_when_its_client_has_left(host: HostProcess, session: HandshakeSession, is_quiet: bool) -> None:
    name = f"left {is_quiet}"
    call = session.start("hold", request_id="left", name=name, quiet=is_quiet)
    until(lambda: session.call("count", of=f"held {name}") == "1")
    call.leave()
    # Spec 2025-11-25 basic/transports#sending-messages-to-the-server: a disconnection is no cancellation.
    time_left = time.monotonic() + 1.5
    until(lambda: time.monotonic() > time_left)
    assert session.call("count", of=f"cancelled {name}") == "0"
    session.call("release", name=name)
    until(lambda: session.call("count", of=f"released {name}") == "1")
    until(lambda: session.start("echo", request_id="left", text="free").answer().status == 200)


def test_silent_call_becomes_a_stream_with_comments(session: HandshakeSession) -> None:
    with session.start("hold", name="silent", quiet=True) as call:
        assert call.is_stream
        for _ in range(2):
            while (event := call.event(comments=True)) is not None and event.name != "comment":
                assert event.data == ""
            assert event is not None
        session.call("release", name="silent")
        assert call.text() == "held silent"


def test_error_of_a_handler_is_an_answer_and_ends_nothing(session: HandshakeSession, host: HostProcess) -> None:
    reply = session.start("no such tool").reply()
    assert "error" in reply or reply["result"]["isError"]
    assert "Traceback" not in json.dumps(reply)
    with HandshakeSession(host, "workshop", "ada") as workshop:
        for tool in ("leave", "fail"):
            reply = workshop.start(tool).reply()
            assert "error" in reply or reply["result"]["isError"]
        assert workshop.call("echo", text="alive") == "alive"


def test_large_answer_comes_whole_either_way(host: HostProcess) -> None:
    with HandshakeSession(host, "workshop", "ada") as workshop:
        assert len(workshop.call("fill", characters=3_000_000)) == 3_000_000
    with HandshakeSession(host, "ledger", "ada") as session, session.start("chatter", times=40, characters=60_000) as c:
        assert len(c.messages()) == 41
