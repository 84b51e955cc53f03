"""How long a call may take. Over the wire, on every transport and for version 1 modules: `e2e/test_calls`."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from django.test import override_settings
from mcp import types
from mcp.client import Client
from mcp.server import Server, ServerRequestContext

from gateway.instances import call_clock
from gateway.instances.call_clock import CallClock
from gateway.instances.calls import CallMiddleware, ServerCalls
from gateway.instances.listings import Listings
from gateway.instances.policies import Policies, Policy, default_policy
from gateway.instances.tool_schemas import ToolSchemas
from tests.support.in_process import HandshakeClient, host_in_process
from tests.support.processes import ROOT
from tests.support.streamable import initialize_message

pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")

LIMIT_SECONDS = 0.5


def policy(limit_seconds: float = 60, longest_seconds: float = 3600) -> Policy:
    return replace(default_policy(), call_timeout_seconds=limit_seconds, max_call_seconds=longest_seconds)


class Time:
    """A clock that tests set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(call_clock, "monotonic", lambda: self.now)

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


# -- The clock -------------------------------------------------------------------------------------------------------


def test_call_without_progress_is_over_after_its_time_limit(time: Time) -> None:
    clock = CallClock(policy())
    assert clock.first_look_seconds == 60
    time.pass_by(59)
    assert not clock.is_over
    assert clock.next_look_seconds == 1
    time.pass_by(1)
    assert clock.is_over
    assert clock.reason == "took longer than 60 seconds and was stopped."


def test_each_progress_gives_the_whole_time_limit_again_up_to_the_longest_time(time: Time) -> None:
    clock = CallClock(policy(longest_seconds=200))
    for _ in range(3):
        time.pass_by(59)
        assert not clock.is_over
        clock.renew()
    assert clock.next_look_seconds == 200 - 3 * 59
    time.pass_by(23)
    assert clock.is_over
    assert clock.reason == "took longer than 200 seconds and was stopped."


def test_call_whose_progress_ends_is_over_one_time_limit_later(time: Time) -> None:
    clock = CallClock(policy())
    time.pass_by(40)
    clock.renew()
    time.pass_by(59)
    assert not clock.is_over
    time.pass_by(1)
    assert clock.is_over
    assert clock.reason == "reported no progress for 60 seconds and was stopped."


def test_time_in_which_a_call_waits_for_its_client_does_not_count(time: Time) -> None:
    clock = CallClock(policy())
    time.pass_by(50)
    with clock.stopped():
        time.pass_by(500)
        with clock.stopped():  # two questions at once
            time.pass_by(500)
        assert not clock.is_over
        assert clock.next_look_seconds == 10
    assert not clock.is_over
    time.pass_by(9)
    assert not clock.is_over
    time.pass_by(1)
    assert clock.is_over


def test_call_whose_client_never_answers_is_over_after_the_longest_time(time: Time) -> None:
    clock = CallClock(policy())
    with clock.stopped():
        time.pass_by(3600)
        assert clock.is_over
        assert clock.reason == "took longer than 3600 seconds and was stopped."


def test_waiting_call_with_hardly_any_time_left_is_not_looked_at_without_a_pause(time: Time) -> None:
    clock = CallClock(policy())
    time.pass_by(59.9999)
    with clock.stopped():
        assert clock.next_look_seconds == call_clock.SHORTEST_LOOK_SECONDS


@pytest.mark.parametrize("longest_seconds", [0, 10])
def test_longest_time_is_never_shorter_than_the_time_limit(time: Time, longest_seconds: float) -> None:
    clock = CallClock(policy(longest_seconds=longest_seconds))
    time.pass_by(59)
    assert not clock.is_over
    time.pass_by(1)
    assert clock.is_over


def test_call_without_a_time_limit_has_no_longest_time_either(time: Time) -> None:
    clock = CallClock(policy(limit_seconds=0))
    assert clock.first_look_seconds is None


# -- Around a handler ------------------------------------------------------------------------------------------------


async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
    session = ctx.session
    if params.name == "report":
        for step in range(8):
            await session.report_progress(step, 8)
            await asyncio.sleep(LIMIT_SECONDS / 5)
    elif params.name == "notify":
        for step in range(8):
            await session.send_progress_notification("token", step, 8)
            await asyncio.sleep(LIMIT_SECONDS / 5)
    elif params.name == "log":
        for step in range(8):
            await session.send_log_message("info", step)  # type: ignore[deprecated]
            await asyncio.sleep(LIMIT_SECONDS / 5)
    elif params.name == "elicit":
        await session.elicit_form("Well?", {"type": "object", "properties": {}})
    elif params.name == "sample":
        message = types.SamplingMessage(role="user", content=types.TextContent(text="Well?"))
        await session.create_message([message], max_tokens=1)  # type: ignore[deprecated]
    elif params.name == "roots":
        await session.list_roots()  # type: ignore[deprecated]
    return types.CallToolResult(content=[types.TextContent(text="done")])


async def slow_answer(*_: Any) -> None:
    await asyncio.sleep(1.5 * LIMIT_SECONDS)


async def elicited(*_: Any) -> types.ElicitResult:
    await slow_answer()
    return types.ElicitResult(action="decline")


async def sampled(*_: Any) -> types.CreateMessageResult:
    await slow_answer()
    return types.CreateMessageResult(role="assistant", content=types.TextContent(text="well"), model="m")


async def roots(*_: Any) -> types.ListRootsResult:
    await slow_answer()
    return types.ListRootsResult(roots=[])


def client(handler: Any, limits: Policy, mode: str = "legacy") -> Client:
    """A client of a server with one handler for all tools, within `limits`."""

    async def list_tools(*_: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[])

    server: Server[Any] = Server("patient", version="1", on_call_tool=handler, on_list_tools=list_tools)
    policies = Policies()
    policies.replace({"patient": limits})
    server.middleware.append(CallMiddleware(ServerCalls("patient", Listings(), policies), "ada", ToolSchemas()))
    return Client(
        server, mode=mode, elicitation_callback=elicited, sampling_callback=sampled, list_roots_callback=roots
    )


async def call(tool: str, mode: str = "legacy", longest_seconds: float = 3600) -> types.CallToolResult:
    """Call a tool that takes longer than its time limit, which is `LIMIT_SECONDS`."""
    async with client(call_tool, policy(LIMIT_SECONDS, longest_seconds), mode) as connected:
        return await connected.call_tool(tool, {})


def text_of(result: types.CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, types.TextContent)
    return block.text


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("tool", ["report", "notify"])
async def test_call_that_reports_progress_goes_on_beyond_its_time_limit(tool: str, mode: str) -> None:
    assert text_of(await call(tool, mode)) == "done"


async def test_call_that_reports_progress_is_stopped_after_the_longest_time() -> None:
    result = await call("report", longest_seconds=1.2 * LIMIT_SECONDS)
    assert result.is_error
    assert text_of(result) == "The call of report took longer than 0.6 seconds and was stopped."


async def test_log_messages_are_no_progress() -> None:
    result = await call("log")
    assert result.is_error
    assert text_of(result) == "The call of log took longer than 0.5 seconds and was stopped."


@pytest.mark.parametrize("tool", ["elicit", "sample", "roots"])
async def test_call_that_waits_for_the_user_goes_on_beyond_its_time_limit(tool: str) -> None:
    assert text_of(await call(tool)) == "done"


async def test_waiting_for_a_client_that_has_not_said_that_it_answers_counts() -> None:
    async def ask(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        ctx.session._connection.client_capabilities = types.ClientCapabilities()
        return await call_tool(ctx, params)

    async with client(ask, policy(LIMIT_SECONDS)) as connected:
        result = await connected.call_tool("elicit", {})
    assert text_of(result) == "The call of elicit took longer than 0.5 seconds and was stopped."


@override_settings(GUMCP_CALL_TIMEOUT_SECONDS=LIMIT_SECONDS)
@pytest.mark.parametrize("is_listening", [True, False])
async def test_waiting_for_an_answer_to_a_question_that_nobody_sees_counts(is_listening: bool) -> None:
    async with host_in_process(ROOT / "tests" / "servers" / "calls") as host:
        target, message = "/version_2/ada:key", initialize_message(capabilities={"elicitation": {}})
        connected = HandshakeClient(host, target, await host.post(target, message).reply())
        await connected.post({"jsonrpc": "2.0", "method": "notifications/initialized"}).reply()
        stream = connected.get() if is_listening else None
        if stream is not None:
            await stream.head()
        asking = connected.start("ask", is_standalone=True)
        if stream is not None:
            asked = await stream.message()
            await asyncio.sleep(2 * LIMIT_SECONDS)  # the user thinks
            await connected.post({"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "decline"}}).reply()
        result = (await asking.reply()).json["result"]
        expected = "answered" if is_listening else "The call of ask took longer than 0.5 seconds and was stopped."
        assert result["content"][0]["text"] == expected


async def test_progress_of_a_handler_that_was_given_up_changes_nothing() -> None:
    reported = asyncio.Event()

    async def insist(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await ctx.session.report_progress(1)
        reported.set()
        return types.CallToolResult(content=[])

    async with client(insist, policy(0.05)) as connected:
        result = await connected.call_tool("insist", {})
        await asyncio.wait_for(reported.wait(), 5)
    assert text_of(result) == "The call of insist took longer than 0.05 seconds and was stopped."
