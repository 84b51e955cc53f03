"""Streamable HTTP of 2026-07-28, in bytes: requests that are complete in themselves."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deadlines import within
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import BUNDLED_SERVERS, PLAIN_SERVERS, ROOT, until
from tests.support.streamable import META, STATELESS, Request, StatelessClient, initialize_message, post
from tests.support.wire import request as message

ERA_SERVERS = ROOT / "tests" / "servers" / "eras"
SERVER_DIRS = f"{BUNDLED_SERVERS}:{PLAIN_SERVERS}:{ERA_SERVERS}"
HEADER_MISMATCH = -32020

users = itertools.count(1)


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def host(start_host: StartHost, request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    with start_host(
        asgi_server=request.param,
        server_dirs=SERVER_DIRS,
        GUMCP_PING_SECONDS="0.5",
        GUMCP_STREAM_BUFFER_BYTES="100000",
        GUMCP_SLOW_READER_SECONDS="1",
    ) as host:
        yield host


@pytest.fixture
def client(host: HostProcess) -> StatelessClient:
    """A client of the ledger with an instance of its own."""
    return StatelessClient(host, "ledger", f"user{next(users)}:key")


@pytest.fixture
def everything(host: HostProcess) -> StatelessClient:
    return StatelessClient(host, "everything", f"user{next(users)}:key", {"elicitation": {}})


def answer_of(under_way: Request) -> tuple[int, Any]:
    answer = under_way.answer()
    return answer.status, answer.json


# -- Requests and their answers --------------------------------------------------------------------------------------


def test_discover_tells_name_and_version_of_the_initialization_options(client: StatelessClient) -> None:
    result = client.request("server/discover").reply()["result"]
    info = result["_meta"][f"{META}serverInfo"] if "serverInfo" not in result else result["serverInfo"]
    assert (info["name"], info["version"]) == ("Ledger of options", "9.9")
    assert STATELESS in result["supportedVersions"]


def test_answer_is_json_without_a_session(client: StatelessClient) -> None:
    before = client.host.metric("gumcp_sessions")
    for method in ("tools/list", "server/discover"):
        answer = client.request(method).answer()
        assert answer.status == 200
        assert answer.headers.get_content_type() == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert "mcp-session-id" not in answer.headers
        assert "result" in answer.json
    assert client.host.metric("gumcp_sessions") == before


def test_session_id_of_another_era_means_nothing(client: StatelessClient) -> None:
    for session_id in ("0" * 32, "x"):
        under_way = client.request("tools/list", headers={"Mcp-Session-Id": session_id})
        assert "result" in under_way.reply()


def test_answer_becomes_a_stream_as_soon_as_the_handler_notifies(client: StatelessClient) -> None:
    meta = {f"{META}logLevel": "info"}
    params = {"name": "hold", "arguments": {"name": "streamed"}}
    with client.request("tools/call", params, meta=meta) as call:
        assert call.is_stream
        assert call.headers["x-accel-buffering"] == "no"
        first = call.message()
        assert (first["method"], first["params"]["data"]) == ("notifications/message", "holding")
        assert client.call("release", name="streamed") == "released"
        assert call.text() == "held streamed"
        assert call.message() is None


def test_silent_call_becomes_a_stream_with_comments(client: StatelessClient) -> None:
    with client.start("hold", name="silent", quiet=True) as call:
        assert call.is_stream
        for _ in range(2):
            event = call.event(comments=True)
            assert event is not None
            assert event.name == "comment"
        client.call("release", name="silent")
        assert call.text() == "held silent"
        assert call.message() is None


def test_same_id_twice_at_once_is_two_requests(client: StatelessClient) -> None:
    with client.start("hold", name="twin", quiet=True) as first:
        until(lambda: client.call("count", of="held twin") == "1")
        assert client.call("echo", text="second") == "second"
        client.call("release", name="twin")
        assert first.text() == "held twin"


@pytest.mark.parametrize("is_quiet", [True, False])
def test_client_that_leaves_cancels_its_call(client: StatelessClient, is_quiet: bool) -> None:
    call = client.start("hold", name="left", quiet=is_quiet)
    until(lambda: client.call("count", of="held left") == "1")
    call.leave()
    until(lambda: client.call("count", of="cancelled left") == "1", seconds=3)


def test_client_that_does_not_read_loses_its_call(host: HostProcess, client: StatelessClient) -> None:
    meta = {f"{META}logLevel": "info"}
    params = {"name": "chatter", "arguments": {"times": 100_000_000, "characters": 100_000}}
    with client.request("tools/call", params, meta=meta) as slow:
        until(lambda: host.metric("gumcp_slow_readers_total", server="ledger") >= 1, seconds=8)
        until(lambda: host.metric("gumcp_tool_calls_total", tool="chatter", outcome="cancelled") >= 1, seconds=5)
        assert slow.status == 200


def test_notification_is_taken_without_a_body(client: StatelessClient) -> None:
    headers = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": "notifications/cancelled"}
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    with client.start("hold", name="not cancelled", quiet=True) as call:
        until(lambda: client.call("count", of="held not cancelled") == "1")
        answer = post(client.host, client.target, cancel, headers).answer()
        assert (answer.status, answer.body) == (202, b"")
        client.call("release", name="not cancelled")
        assert call.text() == "held not cancelled"


def test_unknown_method_is_404_with_its_json_rpc_error(client: StatelessClient) -> None:
    status, reply = answer_of(client.request("no/such", request_id="mine"))
    assert (status, reply["id"], reply["error"]["code"]) == (404, "mine", -32601)


@pytest.mark.parametrize("version", ["2099-01-01", "2026-07-27", "nonsense", "2025-11-26"])
def test_unknown_version_is_400_with_what_is_spoken(client: StatelessClient, version: str) -> None:
    meta = {f"{META}protocolVersion": version}
    status, reply = answer_of(client.request("tools/list", meta=meta, headers={"MCP-Protocol-Version": version}))
    assert status == 400
    assert STATELESS in json.dumps(reply["error"]["data"])


def test_initialize_selects_the_handshake_era(client: StatelessClient) -> None:
    headers = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": "initialize"}
    answer = post(client.host, client.target, initialize_message(), headers).answer()
    assert (answer.status, answer.json["result"]["protocolVersion"]) == (200, "2025-11-25")
    assert answer.headers["mcp-session-id"]


# -- Headers that repeat the body ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Mcp-Method": "tools/list"}, id="other method"),
        pytest.param({"Mcp-Method": ""}, id="no method"),
        pytest.param({"Mcp-Name": "other"}, id="other name"),
        pytest.param({"Mcp-Name": ""}, id="no name"),
        pytest.param({"Mcp-Name": "=?base64?!?="}, id="no base64"),
        pytest.param({"Mcp-Name": "=?base64?größe?="}, id="no base64 and beyond ASCII"),
    ],
)
def test_header_that_differs_from_the_body_is_400(client: StatelessClient, headers: dict[str, str]) -> None:
    params = {"name": "echo", "arguments": {"text": "x"}}
    status, reply = answer_of(client.request("tools/call", params, request_id=7, headers=headers))
    assert (status, reply["error"]["code"], reply["id"]) == (400, HEADER_MISMATCH, 7)


def test_version_in_the_body_that_differs_from_the_header_is_400(client: StatelessClient) -> None:
    meta = {f"{META}protocolVersion": "2025-11-25"}
    status, reply = answer_of(client.request("tools/list", meta=meta))
    assert (status, reply["error"]["code"]) == (400, HEADER_MISMATCH)


def test_header_that_comes_twice_is_400(client: StatelessClient) -> None:
    params = {"_meta": {f"{META}protocolVersion": STATELESS, f"{META}clientCapabilities": {}}}
    body = json.dumps(message("tools/list", params, 1)).encode()
    lines = (
        f"POST {client.target} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        "Content-Type: application/json",
        "Accept: application/json, text/event-stream",
        f"MCP-Protocol-Version: {STATELESS}",
        "Mcp-Method: tools/list",
        "Mcp-Method: tools/call",
        f"Content-Length: {len(body)}",
    )
    raw = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    status, reply = answer_of(Request(client.host.port, "POST", client.target, raw=raw))
    assert (status, reply["error"]["code"]) == (400, HEADER_MISMATCH)


@pytest.mark.parametrize("server", ["ledger", "everything"])
def test_parameter_in_a_header_must_be_that_of_the_body(host: HostProcess, server: str) -> None:
    client = StatelessClient(host, server, f"user{next(users)}:key")
    tool = {"ledger": "deliver", "everything": "test_x_mcp_header"}[server]

    def deliver(arguments: dict[str, Any], **headers: str) -> tuple[int, Any]:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return answer_of(client.request("tools/call", {"name": tool, "arguments": arguments}, headers=fields))

    # The first of them, with nothing listed before, is checked too.
    assert deliver({"region": "north"}, Mcp_Param_Region="south")[1]["error"]["code"] == HEADER_MISMATCH
    assert deliver({"region": "north"})[1]["error"]["code"] == HEADER_MISMATCH
    assert deliver({}, Mcp_Param_Region="south")[1]["error"]["code"] == HEADER_MISMATCH
    status, reply = deliver({"region": "north"}, Mcp_Param_Region="north")
    assert status == 200
    assert "north" in reply["result"]["content"][0]["text"]
    encoded = base64.b64encode("süd".encode()).decode()
    assert deliver({"region": "süd"}, Mcp_Param_Region=f"=?base64?{encoded}?=")[0] == 200


def test_calls_do_not_list_the_servers_tools_each_time(client: StatelessClient) -> None:
    for number in range(30):
        assert client.call("echo", text=str(number)) == str(number)
    # One when the instance was made, to learn what the server offers; one to learn its tools' schemas.
    assert int(client.call("count", of="listings")) <= 2
    region = {"Mcp-Param-Region": "north"}
    for _ in range(10):
        params = {"name": "deliver", "arguments": {"region": "north"}}
        assert client.request("tools/call", params, headers=region).text() == "north"
    assert int(client.call("count", of="listings")) <= 2


# -- Questions to the client -----------------------------------------------------------------------------------------


def ask(client: StatelessClient, tool: str = "test_input_required_result_request_state") -> str:
    """Call a tool that asks and return the state that it wants back."""
    result = client.start(tool).reply()["result"]
    assert result["resultType"] == "input_required"
    return str(result["requestState"])


def reply_to(client: StatelessClient, state: str, tool: str = "test_input_required_result_request_state") -> Any:
    confirmed = {"confirm": {"action": "accept", "content": {"ok": True}}}
    params = {"name": tool, "arguments": {}, "inputResponses": confirmed, "requestState": state}
    return client.request("tools/call", params).reply()


def test_state_comes_back_from_its_own_client(everything: StatelessClient) -> None:
    state = ask(everything)
    assert "waiting for the confirmation" not in state
    assert "state-ok" in reply_to(everything, state)["result"]["content"][0]["text"]


def test_altered_state_is_refused(everything: StatelessClient) -> None:
    state = ask(everything)
    for altered in (state[:-2] + ("AA" if state[-2:] != "AA" else "BB"), state[:-10], "", "x", state + "x", "é"):
        reply = reply_to(everything, altered)
        assert "error" in reply, altered
        assert reply["error"]["code"] == -32602


def test_state_of_another_tool_is_refused(everything: StatelessClient) -> None:
    state = ask(everything)
    assert "error" in reply_to(everything, state, "test_input_required_result_tampered_state")


def test_state_is_refused_under_any_other_key_exactly_as_a_forged_one(everything: StatelessClient) -> None:
    state = ask(everything)
    user = everything.key.partition(":")[0]
    for key in (f"{user}:other", user, "somebody:key"):
        other = StatelessClient(everything.host, "everything", key, {"elicitation": {}})
        assert reply_to(other, state) == reply_to(other, "forged")
        assert "error" in reply_to(other, state)
    assert "result" in reply_to(everything, state)


def test_state_outlives_the_host_that_gave_it(start_host: StartHost, tmp_path: Path) -> None:
    with start_host(tmp_path, server_dirs=SERVER_DIRS) as host:
        state = ask(StatelessClient(host, "everything", "ada:key", {"elicitation": {}}))
        key_file = (tmp_path / "secret_key").read_text()
    with start_host(tmp_path, server_dirs=SERVER_DIRS) as host:
        assert (tmp_path / "secret_key").read_text() == key_file
        client = StatelessClient(host, "everything", "ada:key", {"elicitation": {}})
        assert "state-ok" in reply_to(client, state)["result"]["content"][0]["text"]
        assert "error" in reply_to(StatelessClient(host, "everything", "bob:key", {"elicitation": {}}), state)


def test_state_of_another_hosts_secret_is_refused(start_host: StartHost, everything: StatelessClient) -> None:
    with start_host(server_dirs=SERVER_DIRS) as other:
        foreign = StatelessClient(other, "everything", everything.key, {"elicitation": {}})
        assert "error" in reply_to(everything, ask(foreign))


# -- Subscriptions ---------------------------------------------------------------------------------------------------


def test_listener_hears_what_others_of_its_key_change(everything: StatelessClient) -> None:
    wanted = {"toolsListChanged": True, "resourceSubscriptions": ["test://watched-resource"]}
    other = StatelessClient(everything.host, "everything", "somebody:else")
    with everything.request("subscriptions/listen", {"notifications": wanted}, request_id="ear") as listening:
        assert listening.message()["method"] == "notifications/subscriptions/acknowledged"
        other.call("test_trigger_tool_change")
        everything.call("test_trigger_prompt_change")
        everything.call("test_trigger_resource_update")
        everything.call("test_trigger_tool_change")
        assert listening.message()["method"] == "notifications/resources/updated"
        assert listening.message()["method"] == "notifications/tools/list_changed"


def test_listening_stream_gets_comments_and_is_counted_while_open(everything: StatelessClient) -> None:
    host = everything.host

    def gauge() -> float:
        return host.metric("gumcp_active_connections", server="everything")

    before = gauge()
    listening = everything.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    assert listening.message() is not None
    assert gauge() == before + 1
    event = listening.event(comments=True)
    assert event is not None
    assert event.name == "comment"
    left = time.monotonic()
    listening.leave()
    until(lambda: gauge() == before, seconds=2)
    assert time.monotonic() - left < within(2)
