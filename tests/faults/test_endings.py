"""Hosts that end: asked to, killed, in the middle of things."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.conftest import StartHost
from tests.e2e.host_process import until
from tests.e2e.wire import tool_call

pytestmark = pytest.mark.e2e

LOST_SECONDS = 15.0
"""How soon the sessions of a process that died are marked."""

END_SECONDS = 8.0
"""How soon a host has ended that was asked to and gives calls two seconds to be answered."""

GRACE = {"GUMCP_SHUTDOWN_GRACE_SECONDS": "2"}


def test_sessions_of_a_killed_host_are_marked_lost_within_fifteen_seconds(
    start_host: StartHost, tmp_path: Path
) -> None:
    with (
        start_host(data_dir=tmp_path) as survivor,
        start_host(data_dir=tmp_path) as victim,
        victim.session("workshop", "doomed:key"),
        survivor.session("workshop", "safe:key") as safe,
    ):
        query = "SELECT user_id, state FROM gateway_session ORDER BY user_id"
        until(lambda: len(survivor.rows(query)) == 2)
        victim.kill()
        states = [{"user_id": "doomed", "state": "lost"}, {"user_id": "safe", "state": "open"}]
        until(lambda: survivor.rows(query) == states, LOST_SECONDS)
        assert safe.call("echo", text="alive") == "alive"


def test_host_that_starts_after_a_crash_marks_what_was_left_open(start_host: StartHost, tmp_path: Path) -> None:
    query = "SELECT state, closed_at, end_reason FROM gateway_session"
    with start_host(data_dir=tmp_path) as host, host.session("workshop", "doomed:key"):
        until(lambda: host.rows(query))
        host.kill()
    with start_host(data_dir=tmp_path) as host:
        until(lambda: host.rows(query)[0]["state"] == "lost", LOST_SECONDS)
        assert host.rows(query)[0]["closed_at"]
        assert "died" in host.rows(query)[0]["end_reason"]


@pytest.mark.parametrize("asgi_server", ["daphne", "uvicorn"])
def test_host_that_is_asked_to_end_closes_streams_writes_rows_and_leaves_nothing(
    start_host: StartHost, asgi_server: str
) -> None:
    with start_host(asgi_server=asgi_server, **GRACE) as host, host.session("workshop", "closing:key") as stream:
        stream.send(tool_call(1, "wait", seconds=60))
        until(lambda: host.rows("SELECT * FROM gateway_session"))
        host.process.terminate()
        host.process.wait(END_SECONDS)
        stream.wait_closed()
        assert host.rows("SELECT state FROM gateway_session") == [{"state": "closed"}]
        assert not psutil.pid_exists(host.pid)


def test_host_with_a_blocked_server_ends_all_the_same(start_host: StartHost) -> None:
    with start_host(**GRACE) as host, host.session("workshop", "blocked:key") as stream:
        stream.send(tool_call(1, "block", seconds=120))
        until(lambda: host.metric("gumcp_lane_lag_seconds", server="workshop") > 0.1)
        host.process.terminate()
        host.process.wait(END_SECONDS)


@pytest.mark.parametrize("asgi_server", ["daphne", "uvicorn"])
def test_call_in_flight_is_answered_while_its_host_ends(start_host: StartHost, asgi_server: str) -> None:
    with (
        start_host(asgi_server=asgi_server, GUMCP_SHUTDOWN_GRACE_SECONDS="10") as host,
        host.session("workshop", "busy:key") as busy,
        host.session("workshop", "idle:key") as idle,
    ):
        busy.send(tool_call("late", "wait", seconds=1.5))
        host.process.terminate()
        idle.wait_closed(1.2)
        assert busy.answer("late")["result"]["content"][0]["text"] == "waited"
        busy.wait_closed(3)
        assert host.process.wait(END_SECONDS) in (0, -15)
