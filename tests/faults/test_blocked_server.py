"""A server that blocks its own event loop freezes its own users and nobody else."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from tests.support.deadlines import are_quick
from tests.support.host_process import HostProcess
from tests.support.processes import until
from tests.support.wire import tool_call

BLOCK_SECONDS = 2.0


def test_calls_to_another_server_stay_quick_while_one_is_blocked(host: HostProcess) -> None:
    with host.session("workshop", "blocking:key") as blocked, host.session("bystander", "quick:key") as quick:
        quick.call("echo", text="warm")
        blocked.send(tool_call("block", "block", seconds=BLOCK_SECONDS))
        measured, end = [], time.monotonic() + BLOCK_SECONDS - 0.5
        while time.monotonic() < end:
            started = time.monotonic()
            assert quick.call("echo", text="x") == "x"
            measured.append(time.monotonic() - started)
        assert are_quick(measured, 0.1)
        assert blocked.is_silent()
        assert host.request("GET", "/health_check").status == 200
        with host.session("bystander", "newcomer:key") as newcomer:
            assert newcomer.call("echo", text="new") == "new"
        assert blocked.answer("block")["result"]["content"][0]["text"] == "blocked"


def test_blocked_lane_shows_in_the_metrics(host: HostProcess) -> None:
    with host.session("workshop", "lagging:key") as stream:
        stream.send(tool_call(1, "block", seconds=2.5))
        until(lambda: host.metric("gumcp_lane_lag_seconds", server="workshop") > 0.5, 4)
        assert "result" in stream.answer(1)
    until(lambda: host.metric("gumcp_lane_lag_seconds", server="workshop") < 0.1, 4)


def test_slow_factory_of_one_server_holds_up_no_other(host: HostProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(host.session, "moody", "stuck-factory")
        until(lambda: "New SSE connection requested for moody" in host.log())
        with host.session("bystander", "beside-factory") as stream:
            assert stream.call("echo", text="x") == "x"
        assert not slow.done()
        slow.result(10).close()
