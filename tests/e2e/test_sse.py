"""HTTP+SSE over real sockets, in bytes: what a client of any make sees. On Daphne and on uvicorn."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from tests.support.deadlines import within
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import until
from tests.support.wire import JSON, SseStream, request, request_bytes, tool_call

BODY_LIMIT = 20_000


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def host(start_host: StartHost, request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    with start_host(asgi_server=request.param, GUMCP_PING_SECONDS="0.5", GUMCP_MAX_BODY_BYTES=str(BODY_LIMIT)) as host:
        yield host


@pytest.fixture
def stream(host: HostProcess) -> Iterator[SseStream]:
    """An initialized session of the workshop."""
    with host.session("workshop", "ada:key") as stream:
        yield stream


# -- The stream ------------------------------------------------------------------------------------------------------


def test_stream_has_the_headers_that_clients_and_proxies_need(host: HostProcess) -> None:
    with host.stream("workshop", "ada") as stream:
        assert stream.status == 200
        assert stream.headers["content-type"].split(";")[0] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["content-length"] is None


def test_first_event_is_the_endpoint_with_an_opaque_session_id(host: HostProcess) -> None:
    with host.stream("workshop", "ada:key") as one, host.stream("workshop", "ada:key") as two:
        pattern = r"/workshop/ada:key/messages/\?session_id=[0-9a-f]{32}"
        assert re.fullmatch(pattern, one.endpoint)
        assert re.fullmatch(pattern, two.endpoint)
        assert one.endpoint != two.endpoint


@pytest.mark.parametrize(
    "key",
    [
        "ada:key",
        "ada%3Akey",
        "ada%3akey",
        "ada:k%2Fe:y",
        "ada:%2E%2E%2F",
        "j%C3%BCrgen:k%C3%A9y",
        "ada@example.com:a+b=c&d;e,f!g$h'i(j)k*l~m",
        "ada:100%25",
        "ada:%22%3C%3E",
    ],
)
def test_endpoint_repeats_the_session_key_as_the_client_wrote_it(host: HostProcess, key: str) -> None:
    with host.session("workshop", key) as stream:
        assert stream.endpoint.startswith(f"/workshop/{key}/messages/?session_id=")
        assert stream.call("echo", text="back") == "back"


def test_stream_url_may_end_with_a_slash(host: HostProcess) -> None:
    with SseStream(host.port, "/workshop/ada:key/") as stream:
        assert stream.endpoint.startswith("/workshop/ada:key/messages/?session_id=")


def test_query_of_the_stream_url_is_no_part_of_the_key(host: HostProcess) -> None:
    with SseStream(host.port, "/workshop/ada:key?other=1") as stream:
        assert stream.endpoint.startswith("/workshop/ada:key/messages/?session_id=")


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*", ""])
def test_stream_opens_whatever_the_client_accepts(host: HostProcess, accept: str) -> None:
    with host.stream("workshop", "ada", {"Accept": accept}) as stream:
        assert stream.status == 200


def test_silent_stream_gets_comments(host: HostProcess) -> None:
    with host.stream("workshop", "ada") as stream:
        for _ in range(2):
            event = stream.next_event(4, comments=True)
            assert event is not None
            assert event.name == "comment"


def test_stream_that_is_not_silent_gets_no_comment(host: HostProcess, stream: SseStream) -> None:
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        stream.send(tool_call("busy", "echo", text="x"))
        event = stream.next_event(comments=True)
        assert event is not None
        assert event.name == "message"


@pytest.mark.parametrize("version", HANDSHAKE_PROTOCOL_VERSIONS)
def test_every_handshake_version_of_the_sdk_is_spoken(host: HostProcess, version: str) -> None:
    with host.stream("workshop", "ada") as stream:
        result = stream.initialize(version)
        assert result["protocolVersion"] == version
        assert result["serverInfo"]["name"] == "workshop"
        assert result["serverInfo"]["version"] == "7.1"
        assert stream.call("echo", text=version) == version


def test_stateless_version_is_spoken_over_the_stream_too(host: HostProcess) -> None:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "wire", "version": "0.1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    with host.stream("workshop", "ada") as stream:
        params = {"name": "echo", "arguments": {"text": "stateless"}, "_meta": meta}
        answer = stream.request("tools/call", params)
        assert answer["result"]["content"][0]["text"] == "stateless"


def test_lists_are_answered(host: HostProcess, stream: SseStream) -> None:
    tools = stream.request("tools/list")["result"]["tools"]
    assert {"echo", "wait"} <= {tool["name"] for tool in tools}


def test_unknown_method_is_answered_with_a_json_rpc_error(host: HostProcess, stream: SseStream) -> None:
    assert stream.request("no/such")["error"]["code"] == -32601


def test_progress_of_a_call_arrives_before_its_answer(stream: SseStream) -> None:
    params = {"name": "progress", "arguments": {"steps": 3}, "_meta": {"progressToken": "p1"}}
    assert stream.request("tools/call", params)["result"]["content"][0]["text"] == "done"
    progress = [note["params"] for note in stream.notifications() if note["method"] == "notifications/progress"]
    assert [(note["progressToken"], note["progress"]) for note in progress] == [("p1", 1), ("p1", 2), ("p1", 3)]


def test_text_of_any_kind_comes_back_as_it_went(stream: SseStream) -> None:
    text = 'line\nbreak\r\n: comment\n\nevent: fake\ndata: {"id": 1}\n\u2028\u2029\0 "quoted" \\ ü 🐍'
    assert stream.call("echo", text=text) == text


def test_answer_larger_than_any_buffer_comes_whole(stream: SseStream) -> None:
    assert len(stream.call("fill", characters=3_000_000)) == 3_000_000


# -- What the stream's URL refuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "PROPFIND"])
def test_wrong_method_on_the_stream_url_is_405_with_allow(host: HostProcess, method: str) -> None:
    answer = host.request(method, "/workshop/ada:key")
    assert answer.status == 405
    assert "GET" in answer.headers["allow"].split(", ")
    assert method not in answer.headers["allow"]
    if method == "HEAD":
        assert answer.body == b""
    else:
        assert answer.json["error"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_wrong_method_on_the_messages_url_is_405_with_allow(host: HostProcess, method: str, slash: str) -> None:
    answer = host.request(method, f"/workshop/ada:key/messages{slash}?session_id=x")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        assert answer.json["error"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize("path", ["/nowhere/ada:key", "/nowhere/ada:key/messages/?session_id=x", "/WORKSHOP/ada"])
def test_unknown_server_is_404_as_json(host: HostProcess, method: str, path: str) -> None:
    answer = host.request(method, path)
    assert answer.status == 404
    if method != "HEAD":
        assert answer.json["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/workshop",
        "/workshop/",
        "/workshop/ada/other",
        "/workshop/ada/messages/more",
        "/workshop/ada//messages/",
        "/workshop//",
        "//workshop/ada",
        "//evil.example/ada",
        "/%",
        "/..",
        "/../etc/passwd",
        "/workshop/../admin",
        "/workshop/%2e%2e/x",
        "/nothing",
        "/nothing/at/all/here",
        "/" + "x" * 3000,
        "/favicon.ico/x",
        "/metrics",
        "/static/no/such.css",
    ],
)
def test_path_that_is_no_route_is_404_and_never_a_crash_or_a_redirect(host: HostProcess, path: str) -> None:
    for method in ("GET", "POST"):
        answer = host.request(method, path)
        # Django refuses a POST without its token before it looks for the page.
        is_django_post = method == "POST" and path.startswith(("/metrics", "/static", "/favicon"))
        assert answer.status in ((403, 404) if is_django_post else (404,)), (method, answer)
        assert "location" not in answer.headers
        assert b"Traceback" not in answer.body


@pytest.mark.parametrize(
    "key",
    [
        "%ff",
        "ada:%fe%ff",
        "%00",
        "ada%0A",
        "ada:%0d%0aX-Injected:1",
        "ada%7f",
        ":key",
        "%3Akey",
        "%20",
        "%",
        "%zz",
        "..%2F..%2Fetc",
        "..",
        "a..b",
        "a%2Fb:key",
        "a%5Cb",
        ".",
        "%2e%2e:key",
    ],
)
def test_session_key_that_names_no_user_is_400_as_json(host: HostProcess, key: str) -> None:
    for method, path in (("GET", f"/workshop/{key}"), ("POST", f"/workshop/{key}/messages/?session_id=x")):
        answer = host.request(method, path)
        assert answer.status == 400
        assert answer.json["error"]
        assert "x-injected" not in answer.headers


@pytest.mark.parametrize("key", [b"\xff\xfe", b"ada:\xc3"])
def test_session_key_of_raw_bytes_that_are_not_utf8_is_400(host: HostProcess, key: bytes) -> None:
    assert host.request("GET", b"/workshop/" + key).status == 400


def test_encoded_and_plain_colon_name_the_same_identity(host: HostProcess) -> None:
    with host.session("workshop", "colon:k%3A1") as one, host.session("workshop", "colon%3Ak:1") as two:
        assert one.call("whoami") == two.call("whoami")
        assert one.call("compare_key", key="k:1") == "True"


def test_key_may_contain_colons_and_slashes(host: HostProcess) -> None:
    with host.session("workshop", "ada:a:b%2Fc:%2E%2E") as stream:
        assert stream.call("compare_key", key="a:b/c:..") == "True"


@pytest.mark.parametrize("host_header", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "user@127.0.0.1"])
def test_foreign_host_name_is_refused(host: HostProcess, host_header: str) -> None:
    answer = host.request("GET", "/workshop/ada", headers={"Host": host_header})
    assert 400 <= answer.status < 500
    assert host.request("GET", "/", headers={"Host": host_header}).status in (400, 421)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_web_page_of_a_foreign_origin_is_refused(host: HostProcess, stream: SseStream, origin: str) -> None:
    assert host.request("GET", "/workshop/ada", headers={"Origin": origin}).status == 403
    assert stream.post(tool_call(1, "echo", text="x"), {"Origin": origin}).status == 403
    assert stream.call("echo", text="still here") == "still here"


# -- Messages --------------------------------------------------------------------------------------------------------


def test_messages_url_works_with_and_without_its_last_slash(stream: SseStream) -> None:
    without = stream.endpoint.replace("/messages/?", "/messages?")
    for endpoint, request_id in ((stream.endpoint, "with"), (without, "without")):
        answer = stream.post(tool_call(request_id, "echo", text=request_id), endpoint=endpoint)
        assert (answer.status, answer.body) == (202, b"Accepted")
        assert stream.answer(request_id)["result"]["content"][0]["text"] == request_id


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_wrong_content_type_is_415_and_the_stream_lives_on(stream: SseStream, content_type: str) -> None:
    answer = stream.post(tool_call(1, "echo", text="x"), {"Content-Type": content_type})
    assert answer.status == 415
    assert answer.json["error"]
    assert stream.call("echo", text="alive") == "alive"


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_of_any_spelling_is_taken(stream: SseStream, content_type: str) -> None:
    assert stream.post(tool_call("spelled", "echo", text="x"), {"Content-Type": content_type}).status == 202
    assert "result" in stream.answer("spelled")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(b"", -32700, id="nothing"),
        pytest.param(b"{", -32700, id="half an object"),
        pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"} x', -32700, id="more than an object"),
        pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": "p\xff"}', -32700, id="invalid utf-8"),
        pytest.param('{"jsonrpc": "2.0", "id": 1, "method": "ping"}'.encode("utf-16"), -32700, id="utf-16"),
        pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": NaN}}', -32700, id="NaN"),
        pytest.param(b"[" * 20_000, -32700, id="deep nesting"),
        pytest.param(b"[]", -32600, id="empty batch"),
        pytest.param(b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', -32600, id="batch"),
        pytest.param(b"null", -32600, id="null"),
        pytest.param(b'"text"', -32600, id="text"),
        pytest.param(b"{}", -32600, id="empty object"),
        pytest.param(b'{"id": 1, "method": "ping"}', -32600, id="no version"),
        pytest.param(b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', -32600, id="wrong version"),
        pytest.param(b'{"jsonrpc": "2.0", "id": null, "method": "ping"}', -32600, id="null id"),
        pytest.param(b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', -32600, id="float id"),
        pytest.param(b'{"jsonrpc": "2.0", "id": 1.0, "method": "ping"}', -32600, id="whole float id"),
        pytest.param(b'{"jsonrpc": "2.0", "id": true, "method": "ping"}', -32600, id="boolean id"),
        pytest.param(b'{"jsonrpc": "2.0", "id": [1], "method": "ping"}', -32600, id="list id"),
        pytest.param(b'{"jsonrpc": "2.0", "id": {}, "method": "ping"}', -32600, id="object id"),
        pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": 5}', -32600, id="method is no text"),
        pytest.param(b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}', -32600, id="params as a list"),
        pytest.param(b'{"jsonrpc": "2.0", "id": true, "result": {}}', -32600, id="boolean id of an answer"),
        pytest.param(b'{"jsonrpc": "2.0", "id": 1.5, "result": {}}', -32600, id="float id of an answer"),
        pytest.param(b'{"jsonrpc": "2.0", "id": null, "result": {}}', -32600, id="null id of an answer"),
    ],
)
def test_message_that_is_none_is_400_and_the_stream_lives_on(stream: SseStream, body: bytes, code: int) -> None:
    answer = stream.post(body)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["jsonrpc"] == "2.0"
    assert answer.json["error"]["code"] == code
    assert answer.json["id"] is None
    assert stream.is_silent()
    assert stream.call("echo", text="alive") == "alive"


@pytest.mark.parametrize("size", [BODY_LIMIT + 1, 4 * BODY_LIMIT])
def test_body_over_the_limit_is_413_and_the_stream_lives_on(stream: SseStream, size: int) -> None:
    answer = stream.post(json.dumps(tool_call(1, "echo", text="")).encode().ljust(size))
    assert answer.status == 413
    assert answer.json["error"]
    assert stream.call("echo", text="alive") == "alive"


def test_body_far_over_the_limit_is_413_to_a_client_that_sends_it_all(host: HostProcess, stream: SseStream) -> None:
    # Not more than a server may read and throw away; one that closed earlier would reset the connection.
    assert stream.post(b" " * 400 * BODY_LIMIT).status == 413
    assert stream.call("echo", text="alive") == "alive"


def test_body_of_exactly_the_limit_is_taken(stream: SseStream) -> None:
    assert stream.post(json.dumps(tool_call("full", "echo", text="x")).encode().ljust(BODY_LIMIT)).status == 202
    assert "result" in stream.answer("full")


def test_chunked_body_over_the_limit_is_413(stream: SseStream) -> None:
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n0\r\n\r\n"
    answer = stream.post(chunk, {"Transfer-Encoding": "chunked", "Content-Length": ""})
    assert answer.status == 413


def test_request_id_in_flight_is_refused_at_once_and_the_first_call_answered(stream: SseStream) -> None:
    stream.send(tool_call("twice", "wait", seconds=1))
    answer = stream.post(tool_call("twice", "echo", text="second"))
    assert stream.is_silent()
    assert answer.status == 400
    assert answer.json["id"] == "twice"
    assert answer.json["error"]["code"] == -32600
    assert stream.answer("twice")["result"]["content"][0]["text"] == "waited"
    assert stream.is_silent()


def test_number_and_text_of_one_request_id_are_the_same_id(stream: SseStream) -> None:
    stream.send(tool_call(77, "wait", seconds=0.3))
    assert stream.post(tool_call("77", "echo", text="second")).status == 400
    assert stream.answer(77)["result"]["content"][0]["text"] == "waited"


def test_request_id_is_free_again_once_answered(stream: SseStream) -> None:
    for text in ("first", "second", "third"):
        assert stream.call("echo", request_id=5, text=text) == text
    assert "error" in stream.request("no/such", request_id=5)
    assert stream.call("echo", request_id=5, text="after an error") == "after an error"


def test_request_id_is_free_again_once_cancelled(stream: SseStream) -> None:
    stream.send(tool_call("c", "wait", seconds=60, name="cancelled-by-message"))
    stream.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "c"}})
    until(lambda: stream.call("was_cancelled", name="cancelled-by-message") == "True")
    until(lambda: stream.post(tool_call("c", "echo", text="again")).status == 202)
    assert stream.answer("c")["result"]["content"][0]["text"] == "again"


def test_second_initialize_is_an_error_and_the_session_lives_on(stream: SseStream) -> None:
    params = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    answer = stream.post(request("initialize", params, "again"))
    assert answer.status == 400
    assert answer.json["id"] == "again"
    assert answer.json["error"]["code"] == -32600
    assert stream.is_silent()
    assert stream.call("echo", text="alive") == "alive"


def test_second_initialize_right_behind_the_first_is_an_error(host: HostProcess) -> None:
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    with host.stream("workshop", "ada") as stream:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda number: stream.post(request("initialize", params, number)), range(8)))
        assert sorted(answer.status for answer in answers) == [202, *[400] * 7]


def test_answers_to_concurrent_calls_come_in_the_order_of_their_ends(stream: SseStream) -> None:
    stream.send(tool_call("slow", "wait", seconds=0.4))
    stream.send(tool_call("quick", "echo", text="x"))
    first = stream.next_event()
    assert first is not None
    assert first.json["id"] == "quick"
    assert "result" in stream.answer("slow")


@pytest.mark.parametrize("tool", ["leave", "fail"])
def test_tool_that_raises_anything_is_answered_with_an_error_and_ends_nothing(
    host: HostProcess, stream: SseStream, tool: str
) -> None:
    with host.session("workshop", "other") as other:
        answer = stream.request("tools/call", {"name": tool, "arguments": {}})
        assert "error" in answer or answer["result"]["isError"]
        assert "Traceback" not in json.dumps(answer)
        assert stream.call("echo", text="alive") == "alive"
        assert other.call("echo", text="alive") == "alive"


# -- Sessions and who owns them --------------------------------------------------------------------------------------


def test_unknown_session_is_404_in_the_ancestors_words(host: HostProcess) -> None:
    for query in ("?session_id=" + "0" * 32, "?session_id=", "", "?session_id=%ff", "?other=1"):
        answer = host.request("POST", f"/workshop/ada:key/messages/{query}", b"{}", JSON)
        assert (answer.status, answer.json) == (404, {"error": "Session not found or expired"})


def test_somebody_elses_session_is_answered_as_one_that_does_not_exist(host: HostProcess, stream: SseStream) -> None:
    session_id = stream.endpoint.partition("session_id=")[2]
    message = json.dumps(tool_call(1, "echo", text="mine")).encode()
    unknown = host.request("POST", f"/workshop/ada:key/messages/?session_id={'0' * 32}", message, JSON)
    for path in ("workshop/ada:other", "workshop/ada", "workshop/bob:key", "bystander/ada:key", "moody/ada:key"):
        foreign = host.request("POST", f"/{path}/messages/?session_id={session_id}", message, JSON)
        assert (foreign.status, foreign.body) == (unknown.status, unknown.body)
        assert without_date(foreign.headers.items()) == without_date(unknown.headers.items())
    for broken in (b"{", b"[]", b"x" * BODY_LIMIT):
        foreign = host.request("POST", f"/workshop/bob:key/messages/?session_id={session_id}", broken, JSON)
        assert (foreign.status, foreign.body) == (unknown.status, unknown.body)
    assert stream.is_silent()


def without_date(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted((name.lower(), value) for name, value in headers if name.lower() != "date")


def test_session_is_gone_once_its_client_has_left(host: HostProcess) -> None:
    stream = host.session("workshop", "ada:key")
    stream.close()
    until(lambda: stream.post(tool_call(1, "echo", text="x")).status == 404, seconds=1)


def test_many_connections_of_one_key_get_their_own_answers_only(host: HostProcess) -> None:
    streams = [host.session("workshop", "crowd:key") for _ in range(12)]
    try:

        def converse(number: int) -> list[str]:
            stream = streams[number]
            return [stream.call("echo", request_id=call, text=f"{number}.{call}") for call in range(15)]

        with ThreadPoolExecutor(len(streams)) as pool:
            answers = list(pool.map(converse, range(len(streams))))
        assert answers == [[f"{number}.{call}" for call in range(15)] for number in range(len(streams))]
        assert all(stream.is_silent() for stream in streams)
        assert len({stream.call("whoami") for stream in streams}) == 1
    finally:
        for stream in streams:
            stream.close()


def test_second_connection_of_a_key_leaves_the_first_one_working(host: HostProcess, stream: SseStream) -> None:
    with host.session("workshop", "ada:key") as second:
        assert second.call("echo", text="second") == "second"
        assert stream.call("echo", text="first") == "first"
    assert stream.call("echo", text="still") == "still"


def test_state_survives_a_reconnect(host: HostProcess) -> None:
    with host.session("workshop", "returning:key") as stream:
        assert stream.call("keep", key="a", value="kept value") == "kept"
    with host.session("workshop", "returning:key") as stream:
        assert stream.call("kept_value", key="a") == "kept value"


def test_keys_and_users_do_not_share_state(host: HostProcess) -> None:
    with host.session("workshop", "sharing:one") as stream:
        stream.call("keep", key="a", value="secret")
        mine = stream.call("whoami")
    for key in ("sharing:two", "sharing", "other:one"):
        with host.session("workshop", key) as stream:
            assert stream.call("kept_value", key="a") == "nothing"
            assert stream.call("whoami") != mine


def test_instance_is_built_once_when_many_connect_at_the_same_moment(host: HostProcess) -> None:
    streams: list[SseStream] = []
    threads = [
        threading.Thread(target=lambda: streams.append(host.session("moody", "slow-together"))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len(streams) == 20
        assert streams[0].call("built") == "1"
    finally:
        for stream in streams:
            stream.close()


@pytest.mark.parametrize("mood", ["raises", "exits", "nonsense", "optionless", "lifeless"])
def test_factory_that_fails_is_503_to_its_own_key_only_and_tried_again(host: HostProcess, mood: str) -> None:
    for _ in range(2):
        answer = host.request("GET", f"/moody/{mood}-user:canary")
        assert answer.status == 503
        assert answer.headers["retry-after"].isdecimal()
        assert "canary" not in answer.json["error"]
        assert "Error" not in answer.json["error"]
        assert b"Traceback" not in answer.body
        with host.session("moody", f"fine-{mood}") as stream:
            assert stream.call("built") == "1"


def test_factory_that_failed_once_serves_the_next_attempt(host: HostProcess) -> None:
    assert host.request("GET", "/moody/flaky-user").status == 503
    with host.session("moody", "flaky-user") as stream:
        assert stream.call("built") == "2"


# -- Disconnects -----------------------------------------------------------------------------------------------------


def test_disconnect_cancels_handlers_and_lowers_the_gauge_within_a_second(host: HostProcess, stream: SseStream) -> None:
    def gauge() -> float:
        return host.metric("gumcp_active_connections", server="workshop")

    before = gauge()
    leaving = host.session("workshop", "leaving:key")
    assert gauge() == before + 1
    leaving.send(tool_call(1, "wait", seconds=60, name="left-behind"))
    assert stream.call("was_cancelled", name="left-behind") == "False"
    left = time.monotonic()
    leaving.close()
    until(lambda: stream.call("was_cancelled", name="left-behind") == "True", seconds=1)
    until(lambda: gauge() == before, seconds=1)
    assert time.monotonic() - left < within(1)
    assert leaving.post(tool_call(2, "echo", text="x")).status == 404


def test_client_that_resets_its_connection_is_noticed_within_a_second(host: HostProcess, stream: SseStream) -> None:
    before = host.metric("gumcp_active_connections", server="workshop")
    leaving = host.session("workshop", "resetting:key")
    leaving._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    leaving.close()
    until(lambda: host.metric("gumcp_active_connections", server="workshop") == before, seconds=1)


def test_client_that_leaves_while_its_instance_is_made_is_forgotten(host: HostProcess) -> None:
    before = host.metric("gumcp_active_connections", server="moody")
    with socket.create_connection(("127.0.0.1", host.port)) as connection:
        connection.sendall(request_bytes("GET", "/moody/slow-leaver"))
    until(lambda: "Closed SSE connection for moody session: slow-leaver" in host.log(), seconds=5)
    until(lambda: host.metric("gumcp_active_connections", server="moody") == before, seconds=1)


def test_log_lines_of_the_ancestor_are_kept(host: HostProcess) -> None:
    with host.session("workshop", "logged:key") as stream:
        stream.call("echo", text="x")
    for line in (
        "New SSE connection requested for workshop with session: logged",
        "SSE connection established for workshop session: logged",
        "Closed SSE connection for workshop session: logged",
    ):
        until(lambda line=line: line in host.log())
