"""A relay to a real child process, driven by the official client in process: every era, questions, crashes."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import mcp_types as types
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from gateway.exceptions import InstanceUnavailable
from gateway.upstreams.inherited import INHERITED_VARIABLES
from gateway.upstreams.slots import Slots
from gateway.upstreams.supply import Supply
from tests.support.upstreams import make_relay, make_supply

Mode = Literal["auto", "legacy"]
pytestmark = pytest.mark.usefixtures("processes")

both_eras = pytest.mark.parametrize("mode", ["auto", "legacy"])

HANG_SECONDS = 20.0


@asynccontextmanager
async def client(supply: Supply, mode: Mode = "auto", user_id: str = "ada", **options: Any) -> AsyncIterator[Client]:
    server = await make_relay(supply, user_id, options.pop("api_key", None))
    async with asyncio.timeout(HANG_SECONDS), Client(server, mode=mode, **options) as connected:
        yield connected


async def text(connected: Client, tool: str, **arguments: Any) -> str:
    result = await connected.call_tool(tool, arguments)
    assert isinstance(result.content[0], types.TextContent)
    return result.content[0].text


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until_gone(pid: int, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while is_alive(pid):  # noqa: ASYNC110  (a process gives no event)
            await asyncio.sleep(0.02)


@both_eras
async def test_tools_are_listed_and_called(mode: Mode) -> None:
    async with client(make_supply(), mode) as connected:
        assert "echo" in [tool.name for tool in (await connected.list_tools()).tools]
        assert await text(connected, "echo", text="hello") == "hello"


@both_eras
async def test_error_result_is_passed_on(mode: Mode) -> None:
    async with client(make_supply(), mode) as connected:
        result = await connected.call_tool("fail", {})
        assert result.is_error
        assert isinstance(result.content[0], types.TextContent)
        assert result.content[0].text == "it failed"


@both_eras
async def test_progress_arrives_in_order_before_the_result(mode: Mode) -> None:
    told: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    async with client(make_supply(), mode) as connected:
        await connected.call_tool("progress", {}, progress_callback=on_progress)
    assert told == [1, 2, 3]


async def _sample(*_: Any) -> types.CreateMessageResult:
    return types.CreateMessageResult(role="assistant", content=types.TextContent(type="text", text="4"), model="m")


async def _elicit(*_: Any) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "Ada"})


async def _roots(*_: Any) -> types.ListRootsResult:
    return types.ListRootsResult(roots=[types.Root(uri="file:///work")])


@both_eras
async def test_questions_of_the_child_are_answered_by_the_client(mode: Mode) -> None:
    answers = {"sampling_callback": _sample, "elicitation_callback": _elicit, "list_roots_callback": _roots}
    async with client(make_supply(), mode, **answers) as connected:
        assert json.loads(await text(connected, "sample"))["content"]["text"] == "4"
        assert json.loads(await text(connected, "elicit")) == {"action": "accept", "content": {"name": "Ada"}}
        assert json.loads(await text(connected, "roots"))["roots"][0]["uri"] == "file:///work"


@both_eras
async def test_question_that_the_client_cannot_answer_is_refused_at_once(mode: Mode) -> None:
    async with client(make_supply(), mode) as connected:
        assert "does not support elicitation" in await text(connected, "elicit")


async def test_result_that_comes_while_its_client_answers_a_question_waits_for_it() -> None:
    async def go_on(*_: Any) -> types.ListRootsResult:
        assert await text(connected, "go_on") == "gone on"
        return await _roots()

    supply = make_supply()
    async with client(supply, "auto", list_roots_callback=go_on) as connected:
        assert await text(connected, "impatient") == "went on"


async def test_result_that_its_client_does_not_come_back_for_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.upstreams.questions.PARKED_SECONDS", 0.2)
    supply = make_supply(idleSeconds=0.1)
    arrived, leave = asyncio.Event(), asyncio.Event()

    async def stay_away(*_: Any) -> types.ListRootsResult:
        assert await text(connected, "go_on") == "gone on"
        arrived.set()
        await leave.wait()
        return await _roots()

    async with client(supply, "auto", list_roots_callback=stay_away) as connected:
        pid = int(await text(connected, "pid"))
        late = asyncio.create_task(text(connected, "impatient"))
        await arrived.wait()
        await until_gone(pid)
        leave.set()
        with pytest.raises(MCPError, match="does not wait for input any more"):
            await late


async def test_parked_call_ends_when_its_input_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.upstreams.questions.PARKED_SECONDS", 0.2)
    supply = make_supply(idleSeconds=0.1)
    arrived, leave = asyncio.Event(), asyncio.Event()

    async def never_answer(*_: Any) -> types.ElicitResult:
        arrived.set()
        await leave.wait()
        return await _elicit()

    async with client(supply, "auto", elicitation_callback=never_answer) as connected:
        pid = int(await text(connected, "pid"))
        late = asyncio.create_task(text(connected, "elicit"))
        await arrived.wait()
        # Nothing uses the child any more, so it is stopped.
        await until_gone(pid)
        leave.set()
        with pytest.raises(MCPError, match="does not wait for input any more"):
            await late


async def test_calls_that_wait_for_input_hold_no_more_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.upstreams.questions.MAX_PARKED_BYTES", 300_000)
    asked = asyncio.Semaphore(0)
    leave = asyncio.Event()

    async def answer_late(*_: Any) -> types.ElicitResult:
        asked.release()
        await leave.wait()
        return await _elicit()

    async with client(make_supply(), "auto", elicitation_callback=answer_late) as connected:
        calls = [asyncio.create_task(text(connected, "elicit", filling="x" * 100_000)) for _ in range(2)]
        for _ in calls:
            await asked.acquire()
        with pytest.raises(MCPError, match="waiting for input"):
            await text(connected, "elicit", filling="x" * 200_000)
        leave.set()
        assert ["Ada" in await call for call in calls] == [True, True]
        assert "Ada" in await text(connected, "elicit", filling="x" * 200_000)


async def test_log_messages_reach_the_client() -> None:
    said: list[Any] = []

    async def on_log(params: types.LoggingMessageNotificationParams) -> None:
        said.append(params.data)

    async with client(make_supply(), "legacy", logging_callback=on_log) as connected:
        await text(connected, "log")
    assert said == ["hello from the child"]


@both_eras
async def test_cancelled_call_is_cancelled_in_the_child(mode: Mode) -> None:
    async with client(make_supply(), mode) as connected:
        hanging = asyncio.create_task(connected.call_tool("hang", {"seconds": 30}))
        await asyncio.sleep(0.2)
        hanging.cancel()
        async with asyncio.timeout(5):
            while json.loads(await text(connected, "cancelled")) == []:  # noqa: ASYNC110  (nor does a child)
                await asyncio.sleep(0.02)


@both_eras
async def test_crash_ends_the_call_with_an_error_and_the_next_one_works(mode: Mode) -> None:
    async with client(make_supply(), mode) as connected:
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(MCPError, match="ended during this request"):
                await connected.call_tool("kill_me", {})
            assert time.monotonic() - started < 5
            assert await text(connected, "echo", text="again") == "again"


async def test_child_ends_with_the_last_of_its_callers() -> None:
    supply = make_supply()
    async with client(supply) as connected:
        pid = int(await text(connected, "pid"))
        assert is_alive(pid)
    await until_gone(pid)
    assert supply.slots.used == 0


async def test_grandchild_that_ignores_sigterm_is_ended_too() -> None:
    async with client(make_supply()) as connected:
        grandchild = int(await text(connected, "spawn"))
    await until_gone(grandchild)


async def test_each_identity_has_a_child_and_its_sessions_share_it() -> None:
    supply = make_supply()
    async with (
        client(supply, user_id="ada") as ada,
        client(supply, user_id="bob") as bob,
        client(supply, user_id="ada") as again,
    ):
        assert await text(ada, "pid") == await text(again, "pid")
        assert await text(ada, "pid") != await text(bob, "pid")


async def test_shared_child_serves_everybody() -> None:
    supply = make_supply(per="shared")
    async with client(supply, user_id="ada") as ada, client(supply, user_id="bob") as bob:
        assert await text(ada, "pid") == await text(bob, "pid")


@pytest.mark.parametrize("question", ["elicit", "sample", "roots"])
@both_eras
async def test_question_of_a_shared_child_never_goes_to_another_user(mode: Mode, question: str) -> None:
    asked: list[str] = []

    def noting(answer: Any) -> Any:
        async def note(*_: Any) -> Any:
            asked.append(question)
            return await answer()

        return note

    supply = make_supply(per="shared")
    callbacks = {"elicitation_callback": _elicit, "sampling_callback": _sample, "list_roots_callback": _roots}
    listening = {name: noting(answer) for name, answer in callbacks.items()}
    async with client(supply, mode, "ada", **callbacks) as ada, client(supply, "legacy", "eve", **listening) as eve:
        assert await text(eve, "echo", text="here") == "here"
        assert "error" not in await text(ada, question)
        held = asyncio.create_task(text(eve, "hang"))
        while calls_in_flight(supply) < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert "several users" in await text(ada, question)
        held.cancel()
    assert asked == []


async def test_log_messages_of_a_shared_child_never_go_to_another_user() -> None:
    said: list[Any] = []

    async def on_log(params: types.LoggingMessageNotificationParams) -> None:
        said.append(params.data)

    supply = make_supply(per="shared")
    async with client(supply, "legacy", "ada") as ada, client(supply, "legacy", "eve", logging_callback=on_log) as eve:
        held = asyncio.create_task(text(eve, "hang"))
        while calls_in_flight(supply) < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await text(ada, "log") == "logged"
        assert await text(eve, "echo", text="last") == "last"
        held.cancel()
    assert said == []


def calls_in_flight(supply: Supply) -> int:
    """How many calls are in flight on a shared link."""
    return len(next(iter(supply._holders.values())).questions.calls)


async def test_session_of_its_own_has_a_child_of_its_own() -> None:
    supply = make_supply(per="session")
    server = await make_relay(supply)
    async with Client(server, mode="legacy") as one, Client(server, mode="legacy") as two:
        assert await text(one, "pid") == await text(one, "pid")
        assert await text(one, "pid") != await text(two, "pid")
        assert supply.slots.used == 2
    async with asyncio.timeout(5):
        while supply.slots.used:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("tool", ["garbage", "wrong_id"])
async def test_noise_on_standard_output_is_skipped(tool: str) -> None:
    async with client(make_supply()) as connected:
        assert await text(connected, tool) in ("after the garbage", "for you")


async def test_line_without_end_stops_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.upstreams.child.MAX_LINE_BYTES", 100_000)
    async with client(make_supply()) as connected:
        with pytest.raises(MCPError, match="ended during this request"):
            await connected.call_tool("long_line", {"bytes": 1_000_000})
        assert await text(connected, "echo", text="again") == "again"


async def test_answer_of_too_many_values_costs_only_its_call() -> None:
    async with client(make_supply()) as connected:
        pid = await text(connected, "pid")
        with pytest.raises(MCPError, match="more than 100000 JSON values"):
            await connected.call_tool("dense", {"values": 100_001})
        assert await text(connected, "pid") == pid


async def test_memory_beyond_the_limit_ends_the_child_and_says_why() -> None:
    supply = make_supply(memoryMiB=80)
    async with client(supply) as connected:
        with pytest.raises(MCPError, match="ended during this request"):
            await connected.call_tool("grow", {})
        assert any("MiB of memory" in line for line in supply.stderr.last(20))


async def test_environment_is_the_allow_list_and_what_the_manifest_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUMCP_SECRET_KEY", "planted")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    supply = make_supply(
        {
            "command": sys.executable,
            "args": ["-S", "tests/support/talking_child.py", "$(touch /tmp/never)", "`id`", "; ls"],
            "env": {"TOKEN": "${api_key}", "WHO": "${user_id}"},
        }
    )
    async with client(supply, api_key="s3cret") as connected:
        environment = json.loads(await text(connected, "environment"))
        assert environment.pop("TOKEN") == "s3cret"
        assert environment.pop("WHO") == "ada"
        assert "planted" not in environment.values()
        assert environment.keys() <= INHERITED_VARIABLES
        arguments, _ = json.loads(await text(connected, "arguments"))
        assert arguments == ["$(touch /tmp/never)", "`id`", "; ls"]
        assert json.loads(await text(connected, "descriptors")) in ([], [3])  # listing opens one


async def test_secrets_that_a_child_writes_to_standard_error_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPERATORS_OWN", "0perators")
    supply = make_supply(
        {
            "command": sys.executable,
            "args": ["-S", "tests/support/talking_child.py", "--token", "1nline"],
            "env": {"A": "${api_key}", "B": "x-${env:OPERATORS_OWN}", "DB_PASSWORD": "pa55", "MODE": "fast"},
        }
    )
    with caplog.at_level("INFO", "gateway.upstreams"):
        async with client(supply, api_key="s3cret") as connected:
            await text(
                connected, "complain", text="${A} ${B} ${DB_PASSWORD} ${MODE} Authorization: Bearer abcdefghijkl"
            )
            async with asyncio.timeout(5):
                while not supply.stderr.last(1):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    shown = "[redacted] x-[redacted] [redacted] fast Authorization: [redacted]"
    assert supply.stderr.last(1) == [shown]
    assert f"Server fixture: {shown}" in caplog.text
    assert supply.summary.endswith("--token [redacted]")


async def test_command_that_does_not_exist_is_a_reason_and_is_not_tried_at_every_call() -> None:
    supply = make_supply({"command": "/no/such/command"})
    with pytest.raises(InstanceUnavailable, match="cannot be started"):
        await make_relay(supply)
    with pytest.raises(InstanceUnavailable, match=r"next start is tried in \d+ s"):
        await make_relay(supply)
    assert any("No such file" in line for line in supply.stderr.last(5))
    assert supply.slots.used == 0


async def test_command_that_is_not_in_path_is_named() -> None:
    supply = make_supply({"command": "no-such-command"})
    with pytest.raises(InstanceUnavailable, match="cannot be started"):
        await make_relay(supply)
    assert any("no-such-command was not found in PATH" in line for line in supply.stderr.last(5))


async def test_broken_command_is_started_six_times_in_the_first_minute_and_then_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 1000.0
    monkeypatch.setattr("gateway.upstreams.supply.time", SimpleNamespace(monotonic=lambda: now))
    starts = tmp_path / "starts"
    program = f"import sys; open({str(starts)!r}, 'a').write('x'); sys.exit(1)"
    supply = make_supply({"command": sys.executable, "args": ["-S", "-c", program]})

    async def starts_until(end: float) -> int:
        """The starts so far, with somebody who tries each half second until `end`."""
        nonlocal now
        while now < end:
            with pytest.raises(InstanceUnavailable):
                await make_relay(supply)
            now += 0.5
        return len(starts.read_text())

    assert await starts_until(1060) <= 6
    assert await starts_until(1120) <= 8
    assert 9 <= await starts_until(1360) <= 12


async def test_command_that_exits_at_once_is_a_reason() -> None:
    supply = make_supply({"command": sys.executable, "args": ["-c", "import sys; sys.exit('broken inside')"]})
    with pytest.raises(InstanceUnavailable, match=r"ended before it answered \(exit status 1\)"):
        await make_relay(supply)
    assert "broken inside" in supply.stderr.last(1)[0]


async def test_command_that_never_answers_is_given_up() -> None:
    supply = make_supply(
        {"command": sys.executable, "args": ["-c", "import time; time.sleep(60)"]}, startTimeoutSeconds=0.5
    )
    with pytest.raises(InstanceUnavailable, match="did not answer in time"):
        await make_relay(supply)


async def test_key_that_is_missing_is_asked_for() -> None:
    supply = make_supply({"command": sys.executable, "args": ["${api_key}"]})
    with pytest.raises(InstanceUnavailable, match="needs an API key"):
        await make_relay(supply)


async def test_user_id_does_not_become_an_option() -> None:
    supply = make_supply({"command": sys.executable, "args": ["${user_id}"]})
    with pytest.raises(InstanceUnavailable, match="begins with a dash"):
        await make_relay(supply, "-c")


async def test_host_runs_no_more_children_than_it_may(settings: Any) -> None:
    settings.GUMCP_MAX_CHILDREN = 1
    slots = Slots()
    async with client(make_supply(slots=slots)):
        with pytest.raises(InstanceUnavailable, match="as many child processes as it may"):
            await make_relay(make_supply(slots=slots), "bob")


async def test_idle_child_is_stopped_and_started_again_when_used() -> None:
    supply = make_supply(idleSeconds=0.2)
    async with client(supply) as connected:
        pid = int(await text(connected, "pid"))
        await until_gone(pid)
        assert await text(connected, "echo", text="back") == "back"


async def test_twenty_crashes_leave_no_process_and_no_descriptor() -> None:
    supply = make_supply()
    async with client(supply) as connected:
        await text(connected, "pid")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            with pytest.raises(MCPError):
                await connected.call_tool("exit", {})
        await text(connected, "pid")
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in pids if "launcher.py" in Path(f"/proc/{pid}/cmdline").read_text()]
