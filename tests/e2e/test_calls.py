"""What a call may do to others, which is nothing: calls that block, hang, fail, are cancelled, or are too many."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.deadlines import are_quick, within
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import PLAIN_SERVERS, ROOT, until
from tests.support.server_folders import WriteServer
from tests.support.streamable import HandshakeSession, StatelessClient
from tests.support.wire import request, tool_call

CALLS = ROOT / "tests" / "servers" / "calls"
SERVERS = f"{CALLS}:{PLAIN_SERVERS}"
HOST_OPTIONS = {"server_dirs": SERVERS}

SHORT_SECONDS = 1.0
"""The time limit where one is tested."""

MAX_THREADS = 3

QUICK_SECONDS = 0.1
"""What no call may take because of another."""

STUCK = "SELECT condition FROM records_serverrecord WHERE name = ?"

Call = Callable[..., Any]
"""`(tool, **arguments)`: calls a tool and returns the JSON-RPC answer."""


@contextmanager
def sse(host: HostProcess, server: str, key: str) -> Iterator[Call]:
    with host.session(server, key) as stream:
        yield lambda tool, **arguments: stream.request("tools/call", {"name": tool, "arguments": arguments})


@contextmanager
def handshake(host: HostProcess, server: str, key: str) -> Iterator[Call]:
    with HandshakeSession(host, server, key) as session:

        def call(tool: str, **arguments: Any) -> Any:
            with session.start(tool, **arguments) as under_way:
                return under_way.reply()

        yield call


@contextmanager
def stateless(host: HostProcess, server: str, key: str) -> Iterator[Call]:
    client = StatelessClient(host, server, key)

    def call(tool: str, **arguments: Any) -> Any:
        with client.start(tool, **arguments) as under_way:
            return under_way.reply()

    yield call


Transport = Callable[[HostProcess, str, str], AbstractContextManager[Call]]

every_transport = pytest.mark.parametrize("transport", [sse, handshake, stateless])
both_versions = pytest.mark.parametrize("server", ["version_1", "version_2"])


def text_of(answer: Any) -> str:
    """The text of a result that is none of an error."""
    assert "result" in answer, answer
    assert not answer["result"].get("isError"), answer
    return str(answer["result"]["content"][0]["text"])


def error_text_of(answer: Any) -> str:
    """The text of an error result."""
    assert "result" in answer, answer
    assert answer["result"]["isError"] is True, answer
    return str(answer["result"]["content"][0]["text"])


def condition(host: HostProcess, server: str) -> str:
    return str(host.rows(STUCK, server)[0]["condition"])


@dataclass
class Stopwatch:
    """How long calls took, one after the other."""

    seconds: list[float]

    def call(self, stream: Any, tool: str, **arguments: Any) -> None:
        started = time.monotonic()
        stream.call(tool, **arguments)
        self.seconds.append(time.monotonic() - started)


# -- Blocking --------------------------------------------------------------------------------------------------------


def test_user_whose_call_sleeps_for_five_seconds_delays_neither_users_of_that_server_nor_others(
    host: HostProcess,
) -> None:
    with (
        host.session("version_1", "sleeper:key") as sleeper,
        host.session("version_1", "neighbour:key") as neighbour,
        host.session("bystander", "stranger:key") as stranger,
    ):
        neighbour.call("echo", text="warm")
        stranger.call("echo", text="warm")
        same, other = Stopwatch([]), Stopwatch([])
        sleeper.send(tool_call("sleep", "block", seconds=5))
        end = time.monotonic() + 4.5
        while time.monotonic() < end:
            same.call(neighbour, "echo", text="x")
            other.call(stranger, "echo", text="x")
            time.sleep(0.01)
        assert sleeper.is_silent()
        assert are_quick(same.seconds, QUICK_SECONDS)
        assert are_quick(other.seconds, QUICK_SECONDS)
        assert text_of(sleeper.answer("sleep")) == "blocked"
        assert host.metric("gumcp_lane_blocks_total", server="version_1") == 0


def test_own_further_calls_are_answered_while_one_blocks(host: HostProcess, tmp_path: Path) -> None:
    release = tmp_path / "release"
    with host.session("version_1", "two-at-once:key") as stream:
        stream.send(tool_call("blocked", "block_until_file", path=str(release)))
        assert stream.call("echo", text="meanwhile") == "meanwhile"
        assert stream.is_silent()
        release.touch()
        assert text_of(stream.answer("blocked"))


@pytest.mark.parametrize("tool", ["block", "block_in_a_task"])
def test_version_2_handler_that_blocks_its_lane_is_named_while_it_does(host: HostProcess, tool: str) -> None:
    with host.session("version_2", f"hog-{tool}:key") as stream:
        stream.call("echo", text="so that the tools are known")
        before = host.metric("gumcp_lane_blocks_total", server="version_2")
        stream.send(tool_call("block", tool, seconds=3.5))
        until(lambda: f"Server version_2: {tool} blocks its event loop" in host.log(), 3.5)
        assert host.metric("gumcp_lane_blocks_total", server="version_2", tool=tool) == 1
        assert host.metric("gumcp_lane_blocks_total", server="version_2") == before + 1
        until(lambda: f"by {tool}" in condition(host, "version_2"), 2)
        assert stream.is_silent()
        assert condition(host, "bystander") == ""
        assert text_of(stream.answer("block")) == "blocked"
        until(lambda: condition(host, "version_2") == "", 4)


def test_factory_that_blocks_its_lane_is_not_taken_for_a_call_that_waits(host: HostProcess) -> None:
    with host.session("version_2", "waits:key") as stream:
        stream.call("echo", text="so that the tools are known")
        stream.send(tool_call("wait", "wait", seconds=30))
        with host.session("version_2", "slow-factory:key"):
            assert "Server version_2: the factory blocks its event loop" in host.log()
        assert "Server version_2: wait blocks" not in host.log()


# -- Time limits -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict_host(start_host: StartHost) -> Iterator[HostProcess]:
    with start_host(
        server_dirs=SERVERS,
        GUMCP_CALL_TIMEOUT_SECONDS=str(SHORT_SECONDS),
        GUMCP_MAX_THREADS=str(MAX_THREADS),
    ) as host:
        yield host


@pytest.mark.parametrize("mood", ["listless", "fleeing"])
def test_stateless_call_does_without_a_list_of_tools_that_hangs_or_fails(strict_host: HostProcess, mood: str) -> None:
    with stateless(strict_host, "moody", f"{mood}:key") as call:
        started = time.monotonic()
        assert text_of(call("built", any="argument")) == "1"
        assert time.monotonic() - started < within(3 * SHORT_SECONDS)


@every_transport
@both_versions
def test_call_that_takes_too_long_gets_an_error_that_says_so_and_the_session_lives_on(
    strict_host: HostProcess, transport: Transport, server: str
) -> None:
    with transport(strict_host, server, f"late-{transport.__name__}:key") as call:
        assert text_of(call("echo", text="before")) == "before"
        started = time.monotonic()
        said = error_text_of(call("wait", seconds=30, name=transport.__name__))
        assert SHORT_SECONDS <= time.monotonic() - started < within(SHORT_SECONDS + 1)
        assert said == "The call of wait took longer than 1 seconds and was stopped."
        assert text_of(call("echo", text="after")) == "after"
        until(lambda: text_of(call("was_cancelled", name=transport.__name__)) == "True")
    assert strict_host.metric("gumcp_tool_calls_total", server=server, tool="wait", outcome="timeout") > 0


def test_calls_that_report_progress_go_on_beyond_the_time_limit_on_every_transport(strict_host: HostProcess) -> None:
    arguments, meta = {"steps": 9, "seconds": 0.2 * SHORT_SECONDS}, {"progressToken": "token"}
    with ExitStack() as stack:
        ended: dict[str, Callable[[], Any]] = {}
        for server in ("version_1", "version_2"):
            stream = stack.enter_context(strict_host.session(server, "reports-sse:key"))
            params = {"name": "report", "arguments": arguments, "_meta": meta}
            stream.send(request("tools/call", params, "report"))
            ended[f"{server} sse"] = partial(stream.answer, "report")
            session = stack.enter_context(HandshakeSession(strict_host, server, "reports-handshake:key"))
            started = stack.enter_context(session.start("report", meta=meta, **arguments))
            ended[f"{server} handshake"] = started.reply
            client = StatelessClient(strict_host, server, "reports-stateless:key")
            named = {"name": "report", "arguments": arguments}
            ended[f"{server} stateless"] = stack.enter_context(client.request("tools/call", named, meta=meta)).reply
        answers = {name: answer() for name, answer in ended.items()}
    assert {name: text_of(answer) for name, answer in answers.items()} == dict.fromkeys(ended, "reported")


@both_versions
def test_call_that_waits_for_the_users_answer_goes_on_beyond_the_time_limit(
    strict_host: HostProcess, server: str
) -> None:
    with (
        HandshakeSession(strict_host, server, "asks:key", capabilities={"elicitation": {}}) as session,
        session.start("ask") as under_way,
    ):
        while (asked := under_way.message()).get("method") != "elicitation/create":
            pass
        for _ in range(3):
            assert session.call("wait", seconds=0.4 * SHORT_SECONDS) == "waited"
        session.respond(asked, {"action": "decline"})
        assert text_of(under_way.reply()) == "answered"


@both_versions
def test_other_requests_have_the_time_limit_too(strict_host: HostProcess, server: str) -> None:
    with strict_host.session(server, "reads:key") as stream:
        error = stream.request("resources/read", {"uri": "late:///x"})["error"]
        assert error["code"] == -32603
        assert error["message"] == "resources/read took longer than 1 seconds and was stopped."
        assert stream.call("echo", text="after") == "after"


@every_transport
@both_versions
def test_handler_that_does_not_let_itself_be_cancelled_is_left_behind(
    strict_host: HostProcess, transport: Transport, server: str, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    with transport(strict_host, server, f"stubborn-{transport.__name__}:key") as call:
        started = time.monotonic()
        said = error_text_of(call("wait_whatever_comes", path=str(release)))
        assert "took longer than 1 seconds" in said
        assert time.monotonic() - started < within(SHORT_SECONDS + 2)
        assert text_of(call("echo", text="after")) == "after"
        until(lambda: strict_host.metric("gumcp_stuck_calls", server=server) >= 1)
        if transport is sse:  # the row is the same for all, and seconds behind
            until(lambda: "stuck" in condition(strict_host, server), 4)
        release.touch()
        until(lambda: strict_host.metric("gumcp_stuck_calls", server=server) == 0)


def test_session_whose_handler_does_not_let_itself_be_cancelled_can_end(
    strict_host: HostProcess, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    session = HandshakeSession(strict_host, "version_2", "leaves:key")
    under_way = session.start("wait_whatever_comes", path=str(release))
    assert session.delete().status == 200
    assert under_way.reply()["error"]["message"]
    under_way.leave()
    until(lambda: strict_host.metric("gumcp_sessions", server="version_2") == 0)
    release.touch()
    until(lambda: strict_host.metric("gumcp_stuck_calls", server="version_2") == 0)


# -- Calls that never return -----------------------------------------------------------------------------------------


def test_stuck_calls_are_bounded_and_the_next_one_is_told_at_once(strict_host: HostProcess, tmp_path: Path) -> None:
    release = tmp_path / "release"
    host = strict_host
    with ExitStack() as stack:
        streams = [stack.enter_context(host.session("version_1", f"stuck-{n}:key")) for n in range(MAX_THREADS + 3)]
        for stream in streams[:MAX_THREADS]:
            stream.send(tool_call("stuck", "block_until_file", path=str(release)))
        for stream in streams[:MAX_THREADS]:
            assert "took longer than 1 seconds" in error_text_of(stream.answer("stuck"))
        assert host.metric("gumcp_stuck_calls", server="version_1") == MAX_THREADS
        for stream in streams:
            started = time.monotonic()
            said = error_text_of(stream.request("tools/call", {"name": "echo", "arguments": {"text": "x"}}))
            assert time.monotonic() - started < within(0.4)
            assert f"limit {MAX_THREADS}" in said
            assert f"{MAX_THREADS} of them were given up but have not returned" in said
        until(lambda: condition(host, "version_1").startswith(f"{MAX_THREADS} calls are stuck"), 4)
        with host.session("bystander", "unaffected:key") as other, host.session("version_2", "unaffected:key") as also:
            watch = Stopwatch([])
            for _ in range(50):
                watch.call(other, "echo", text="x")
                watch.call(also, "echo", text="x")
            assert are_quick(watch.seconds, QUICK_SECONDS)
        # They come back: there is room again, in the same sessions.
        release.touch()
        until(lambda: host.metric("gumcp_stuck_calls", server="version_1") == 0)
        assert [stream.call("echo", text="again") for stream in streams] == ["again"] * len(streams)
        until(lambda: condition(host, "version_1") == "", 4)


@pytest.mark.parametrize(("asgi_server", "server"), [("daphne", "version_1"), ("serve", "version_2")])
def test_host_with_stuck_calls_ends_in_time(
    start_host: StartHost, tmp_path: Path, asgi_server: str, server: str
) -> None:
    tool = {"version_1": "block_until_file", "version_2": "wait_whatever_comes"}[server]
    with start_host(server_dirs=SERVERS, asgi_server=asgi_server, GUMCP_CALL_TIMEOUT_SECONDS="0.3") as host:
        with host.session(server, "stuck:key") as stream:
            answer = stream.request("tools/call", {"name": tool, "arguments": {"path": str(tmp_path / "never")}})
            assert error_text_of(answer)
        started = time.monotonic()
        host.terminate()
        assert time.monotonic() - started < within(8)


# -- Too many at once ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow_host(start_host: StartHost) -> Iterator[HostProcess]:
    options = {"GUMCP_MAX_CONCURRENT_CALLS": "3", "GUMCP_MAX_CONCURRENT_CALLS_PER_USER": "2"}
    with start_host(server_dirs=SERVERS, **options) as host:
        yield host


@both_versions
def test_calls_beyond_the_limits_of_a_user_and_of_a_server_are_refused_with_a_reason(
    narrow_host: HostProcess, server: str
) -> None:
    with (
        # Two keys of one user are one user.
        narrow_host.session(server, "many:one") as first,
        narrow_host.session(server, "many:two") as second,
        narrow_host.session(server, "other:key") as other,
        narrow_host.session("bystander", "many:one") as elsewhere,
    ):
        for stream in (first, second):
            stream.send(tool_call("long", "wait", seconds=1.5))
        until(lambda: "result" in second.request("tools/list"))
        refused = error_text_of(second.request("tools/call", {"name": "echo", "arguments": {"text": "x"}}))
        assert refused.startswith("You have 2 calls of this server running already")
        other.send(tool_call("long", "wait", seconds=1.5))
        other.request("tools/list")
        refused = error_text_of(other.request("tools/call", {"name": "echo", "arguments": {"text": "x"}}))
        assert refused.startswith("This server is running 3 calls already")
        assert elsewhere.call("echo", text="elsewhere") == "elsewhere"
        for stream in (first, second, other):
            assert text_of(stream.answer("long")) == "waited"
            assert stream.call("echo", text="again") == "again"
    assert narrow_host.metric("gumcp_tool_calls_total", server=server, outcome="refused") == 2


@both_versions
def test_calls_that_fail_or_are_cancelled_leave_room(narrow_host: HostProcess, server: str) -> None:
    with narrow_host.session(server, "fails:key") as stream:
        for number in range(4):
            stream.request("tools/call", {"name": "fail", "arguments": {"error": "SystemExit"}})
            stream.send(tool_call(f"c{number}", "wait", seconds=30))
            cancel = {"method": "notifications/cancelled", "params": {"requestId": f"c{number}"}}
            stream.send({"jsonrpc": "2.0", **cancel})
        until(lambda: stream.request("tools/call", {"name": "echo", "arguments": {"text": "x"}})["result"])
        until(lambda: narrow_host.metric("gumcp_tool_calls_total", server=server, outcome="cancelled") == 4)
        assert stream.call("echo", text="room") == "room"


# -- Handlers that raise ---------------------------------------------------------------------------------------------

ERRORS = [
    *("SystemExit", "exit", "KeyboardInterrupt", "BaseExceptionGroup"),
    *("CancelledError", "GeneratorExit", "RecursionError"),
    *("a name that is not UTF-8", "data that is no JSON"),
]


@both_versions
@pytest.mark.parametrize("error", ERRORS)
def test_handler_that_raises_anything_fails_its_own_call_only(host: HostProcess, server: str, error: str) -> None:
    key = f"raises-{error.replace(' ', '-')}:key"
    with (
        host.session(server, key) as stream,
        host.session(server, f"beside-{key}") as beside,
        HandshakeSession(host, server, key) as sharing,
    ):
        stream.send(tool_call("own", "wait", seconds=0.3))
        beside.send(tool_call("others", "wait", seconds=0.3))
        answer = stream.request("tools/call", {"name": "fail", "arguments": {"error": error}})
        assert "error" in answer or answer["result"]["isError"], answer
        if server == "version_1":
            assert error_text_of(answer), "version 1 answers an exception of a tool with its text"
        assert text_of(stream.answer("own")) == "waited"
        assert text_of(beside.answer("others")) == "waited"
        assert stream.call("echo", text="alive") == "alive"
        assert sharing.call("echo", text="alive") == "alive"
        with sharing.start("fail", error=error) as under_way:
            answer = under_way.reply()
            assert "error" in answer or answer["result"]["isError"], answer
        assert StatelessClient(host, server, key).call("echo", text="alive") == "alive"
        with StatelessClient(host, server, key).start("fail", error=error) as under_way:
            answer = under_way.reply()
            assert "error" in answer or answer["result"]["isError"], answer


@both_versions
def test_task_left_in_the_background_that_raises_system_exit_ends_nobody(host: HostProcess, server: str) -> None:
    with host.session(server, "background:key") as stream, host.session(server, "beside-background:key") as beside:
        beside.send(tool_call("others", "wait", seconds=0.3))
        assert stream.call("fail_in_background") == "went on"
        assert text_of(beside.answer("others")) == "waited"
        assert stream.call("echo", text="alive") == "alive"


# -- Cancelled calls -------------------------------------------------------------------------------------------------


@both_versions
def test_call_that_its_client_cancels_is_cancelled_in_its_handler_and_never_answered(
    host: HostProcess, server: str
) -> None:
    with host.session(server, "cancels:key") as stream:
        stream.send(tool_call("cancelled", "wait", seconds=30, name=f"sse-{server}"))
        assert stream.call("was_cancelled", name=f"sse-{server}") == "False"
        stream.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "cancelled"}})
        until(lambda: stream.call("was_cancelled", name=f"sse-{server}") == "True", 3)
        # Its id is free again, and nothing was answered in between.
        assert stream.call("echo", request_id="cancelled", text="again") == "again"


@both_versions
def test_stateless_call_whose_client_leaves_is_cancelled_in_its_handler(host: HostProcess, server: str) -> None:
    client = StatelessClient(host, server, "leaves:key")
    client.call("echo", text="warm")
    client.start("wait", seconds=30, name=f"stateless-{server}").leave()
    until(lambda: client.call("was_cancelled", name=f"stateless-{server}") == "True", 5)


def test_cancelled_call_that_blocks_counts_as_stuck_until_it_returns(host: HostProcess, tmp_path: Path) -> None:
    release = tmp_path / "release"
    with host.session("version_1", "blocks:key") as stream:
        stream.send(tool_call("blocked", "block_until_file", path=str(release)))
        stream.call("echo", text="it has begun")
        stream.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "blocked"}})
        until(lambda: host.metric("gumcp_stuck_calls", server="version_1") == 1, 3)
        assert stream.call("echo", text="alive") == "alive"
        release.touch()
        until(lambda: host.metric("gumcp_stuck_calls", server="version_1") == 0, 3)


# -- Lifespans that end by themselves ----------------------------------------------------------------------------------


FRAGILE = """
    import asyncio
    from contextlib import asynccontextmanager

    from mcp.server import MCPServer
    from mcp.server.mcpserver import Context

    openings = []

    @asynccontextmanager
    async def lifespan(app):
        state = {"number": len(openings) + 1, "is": "open", "is_broken": asyncio.Event()}
        openings.append(state)

        async def pump():
            await state["is_broken"].wait()
            raise RuntimeError("connection lost")

        try:
            async with asyncio.TaskGroup() as group:
                pumping = group.create_task(pump())
                yield state
                pumping.cancel()
        finally:
            state["is"] = "closed"

    def create_server():
        instance = MCPServer("fragile", version="1", lifespan=lifespan)

        @instance.tool()
        async def look(ctx: Context) -> str:
            state = ctx.request_context.lifespan_context
            return f"{state['is']} {state['number']}"

        @instance.tool()
        async def snap(ctx: Context) -> str:
            ctx.request_context.lifespan_context["is_broken"].set()
            return "snapped"

        return instance

    server = create_server%s
"""


@pytest.mark.parametrize(("style", "after_it"), [("shared", "open 2"), ("own", "open 3")])
def test_open_sessions_and_new_ones_get_a_new_lifespan_after_theirs_has_ended_by_itself(
    start_host: StartHost, write_server: WriteServer, style: str, after_it: str
) -> None:
    directory = write_server("fragile", FRAGILE % ("()" if style == "shared" else ""))
    with start_host(server_dirs=directory) as host:
        client = StatelessClient(host, "fragile", "ada:key")
        with HandshakeSession(host, "fragile", "ada:key") as session, host.session("fragile", "ada:key") as stream:
            assert [each.call("look") for each in (session, stream, client)] == ["open 1"] * 3
            assert session.call("snap") == "snapped"
            until(lambda: session.call("look") == "open 2", 3)
            assert [each.call("look") for each in (stream, client)] == ["open 2"] * 2
            with HandshakeSession(host, "fragile", "ada:key") as new:
                assert new.call("look") == "open 2"
            assert StatelessClient(host, "fragile", "bob:key").call("look") == after_it
        log = host.log()
        assert log.count("RuntimeError: connection lost") == 1
        assert "The lifespan of an instance of fragile ended by itself" in log
