"""SIGTERM in six situations, on a host as operators start it: when it exits, what is lost, what is still run."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.serving.freezes import FROZEN_SECONDS
from tests.faults.figures import Record, size
from tests.support.deadlines import within
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import ROOT, until
from tests.support.streamable import ACCEPT_BOTH, META, STATELESS, Request, initialize_message
from tests.support.wire import JSON, SseStream, request_bytes, tool_call

GRACE_SECONDS = size(2, 5)
SERVERS = ["daphne", "uvicorn"]
COMMANDS = ["serve", *SERVERS]

LONG = 120.0
"""Longer than any grace time."""

StartEnding = Callable[[str], contextlib.AbstractContextManager[HostProcess]]


@pytest.fixture
def start(start_host: StartHost) -> StartEnding:
    def start(asgi_server: str) -> contextlib.AbstractContextManager[HostProcess]:
        directory = ROOT / "tests" / "servers" / "faults"
        grace = {"GUMCP_SHUTDOWN_GRACE_SECONDS": str(GRACE_SECONDS)}
        host: contextlib.AbstractContextManager[HostProcess] = start_host(
            asgi_server=asgi_server, server_dirs=directory, **grace
        )
        return host

    return start


def notes(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def terminate(host: HostProcess) -> float:
    started = time.monotonic()
    host.process.terminate()
    return started


def seconds_to_exit(host: HostProcess, started: float) -> float:
    status = host.process.wait(GRACE_SECONDS + 10)
    seconds = time.monotonic() - started
    # uvicorn repeats the signal to itself once everything has ended.
    assert status == 0 or (status == -signal.SIGTERM and "uvicorn" in host.process.args[2]), host.log()
    return seconds


ENDPOINT = re.compile(rb"/endings/\S+/messages/\?session_id=\w+(?=\r)")


@contextlib.contextmanager
def raw_stream(host: HostProcess, user: str) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", host.port), 10) as connection:
        connection.sendall(request_bytes("GET", f"/endings/{user}", headers={"Accept": "text/event-stream"}))
        received = b""
        while (endpoint := ENDPOINT.search(received)) is None:
            received += connection.recv(4096)
        # Only sessions that are established have rows.
        body = json.dumps(initialize_message()).encode()
        assert host.request("POST", endpoint[0].decode(), body, JSON).status == 202
        while b"serverInfo" not in received:
            received += connection.recv(4096)
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while received := connection.recv(65536):
            data += received
    return data


def call(stream: SseStream, tool: str, seconds: float, path: Path) -> None:
    stream.send(tool_call(tool, tool, seconds=seconds, notes=str(path)))


@pytest.mark.parametrize("asgi_server", SERVERS)
def test_idle_streams_end_in_order_and_the_host_with_them(start: StartEnding, record: Record, asgi_server: str) -> None:
    with start(asgi_server) as host, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(raw_stream(host, f"idle-{number}")) for number in range(20)]
        query = "SELECT count(*) AS sessions FROM records_sessionrecord WHERE state = ?"
        until(lambda: host.rows(query, "open")[0]["sessions"] == 20)
        started = terminate(host)
        assert all(read_to_end(stream).endswith(b"0\r\n\r\n") for stream in streams)
        seconds = seconds_to_exit(host, started)
        assert host.rows(query, "closed")[0]["sessions"] == 20
        record("idle streams", f"exit after {seconds:.1f} s, all ended by their last chunk")
        assert seconds < within(GRACE_SECONDS + 1)


@pytest.mark.parametrize("asgi_server", COMMANDS)
def test_calls_that_end_in_time_are_answered_and_the_others_run_their_finally(
    start: StartEnding, record: Record, asgi_server: str, tmp_path: Path
) -> None:
    path = tmp_path / "notes"
    with start(asgi_server) as host, contextlib.ExitStack() as stack:
        quick = [stack.enter_context(host.session("endings", f"quick-{number}")) for number in range(5)]
        slow = [stack.enter_context(host.session("endings", f"slow-{number}")) for number in range(5)]
        for stream in quick:
            call(stream, "wait", GRACE_SECONDS / 2, path)
        for stream in slow:
            call(stream, "wait", LONG, path)
        started = terminate(host)
        answered = sum("result" in stream.answer("wait", GRACE_SECONDS + 2) for stream in quick)
        seconds = seconds_to_exit(host, started)
        record(
            "running calls",
            f"exit after {seconds:.1f} s, {answered} of 5 answered, {notes(path).count('finally')} "
            f"of 10 finally, {notes(path).count('lifespan')} of 10 lifespans ended",
        )
        assert answered == 5
        assert notes(path).count("finally") == 10
        assert notes(path).count("lifespan") == 10
        assert GRACE_SECONDS / 2 < seconds < within(GRACE_SECONDS + 1)


@pytest.mark.parametrize("asgi_server", SERVERS)
def test_half_sent_request_holds_up_nothing(start: StartEnding, record: Record, asgi_server: str) -> None:
    with start(asgi_server) as host, contextlib.ExitStack() as stack:
        halves = (b"GET /endings/half HT", request_bytes("POST", "/endings/half", b"{}")[:-1])
        for half in halves:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", host.port), 10))
            connection.sendall(half)
        host.request("GET", "/health_check")
        seconds = seconds_to_exit(host, terminate(host))
        record("half-sent requests", f"exit after {seconds:.1f} s")
        assert seconds < within(GRACE_SECONDS + 1)
        assert "Traceback" not in host.log()


@pytest.mark.parametrize("asgi_server", SERVERS)
def test_handler_that_swallows_cancellation_holds_up_nothing(
    start: StartEnding, record: Record, asgi_server: str, tmp_path: Path
) -> None:
    path = tmp_path / "notes"
    with (
        start(asgi_server) as host,
        host.session("endings", "stubborn") as stubborn,
        host.session("endings", "meek") as meek,
    ):
        call(meek, "wait", LONG, path)
        call(stubborn, "swallow", LONG, path)
        until(lambda: "stubborn" in notes(path))
        seconds = seconds_to_exit(host, terminate(host))
        record("a handler that swallows cancellation", f"exit after {seconds:.1f} s, the other's finally is run")
        assert "swallowed" in notes(path)
        assert "finally" in notes(path)
        assert seconds < within(GRACE_SECONDS + 1)
        assert host.rows("SELECT DISTINCT state FROM records_sessionrecord") == [{"state": "closed"}]


@pytest.mark.parametrize("asgi_server", SERVERS)
def test_blocked_lane_holds_up_nothing(start: StartEnding, record: Record, asgi_server: str, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with start(asgi_server) as host, host.session("endings", "blocked") as stream:
        call(stream, "block", LONG, path)
        until(lambda: "blocking" in notes(path))
        seconds = seconds_to_exit(host, terminate(host))
        record("a blocked lane", f"exit after {seconds:.1f} s")
        assert seconds < within(GRACE_SECONDS + 1)
        assert host.rows("SELECT state FROM records_sessionrecord") == [{"state": "closed"}]


@pytest.mark.parametrize("asgi_server", COMMANDS)
def test_call_that_holds_the_gil_holds_up_nothing_and_is_named(
    start: StartEnding, record: Record, asgi_server: str, tmp_path: Path
) -> None:
    """Every thread of the process stands still, the one that watches for signals too."""
    path = tmp_path / "notes"
    with start(asgi_server) as host, contextlib.ExitStack() as stack:
        stream = stack.enter_context(host.session("endings", "greedy"))
        stack.enter_context(backtracking(host, stream, path))
        until(lambda: not is_healthy(host))
        started = terminate(host)
        status = host.process.wait(GRACE_SECONDS + 10)
        seconds = time.monotonic() - started
        record("a call that holds the GIL", f"exit after {seconds:.1f} s with status {status}")
        assert seconds < GRACE_SECONDS + 2
        assert re.search(r'endings/main\.py", line \d+ in backtrack', host.log())


@pytest.mark.parametrize("asgi_server", SERVERS)
def test_host_that_stands_still_says_what_it_is_doing(start: StartEnding, asgi_server: str, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with start(asgi_server) as host, contextlib.ExitStack() as stack:
        stream = stack.enter_context(host.session("endings", "greedy"))
        stack.enter_context(backtracking(host, stream, path))
        until(lambda: re.search(r'endings/main\.py", line \d+ in backtrack', host.log()), FROZEN_SECONDS + 5)
        assert host.process.poll() is None
        host.kill()


@contextlib.contextmanager
def backtracking(host: HostProcess, stream: SseStream, path: Path) -> Iterator[None]:
    """Have the host call the tool; it may not get to answer the request."""
    message = tool_call("backtrack", "backtrack", seconds=LONG, notes=str(path))
    with socket.create_connection(("127.0.0.1", host.port), 10) as connection:
        connection.sendall(request_bytes("POST", stream.endpoint, json.dumps(message).encode(), JSON))
        until(lambda: "backtracking" in notes(path))
        yield


def is_healthy(host: HostProcess) -> bool:
    with socket.create_connection(("127.0.0.1", host.port), 10) as client:
        client.settimeout(0.3)
        client.sendall(request_bytes("GET", "/health_check"))
        try:
            return bool(client.recv(1))
        except TimeoutError:
            return False


@pytest.mark.parametrize("asgi_server", COMMANDS)
def test_second_signal_ends_the_host_at_once(
    start: StartEnding, record: Record, asgi_server: str, tmp_path: Path
) -> None:
    path = tmp_path / "notes"
    with start(asgi_server) as host, host.session("endings", "busy") as busy, host.session("endings", "idle") as idle:
        call(busy, "wait", LONG, path)
        terminate(host)
        idle.wait_closed()  # so that the first signal has been noticed: equal ones that are pending are one
        started = time.monotonic()
        host.process.terminate()
        status = host.process.wait(5)
        seconds = time.monotonic() - started
        record("a second signal", f"exit after {seconds:.2f} s with status {status}")
        assert seconds < within(1)
        assert status == 128 + signal.SIGTERM


@pytest.mark.parametrize("asgi_server", SERVERS)
def test_listener_that_comes_when_the_host_is_stopping_holds_up_nothing(
    start_host: StartHost, record: Record, asgi_server: str
) -> None:
    envelope = {f"{META}protocolVersion": STATELESS, f"{META}clientCapabilities": {}}
    listen = {"notifications": {"toolsListChanged": True}, "_meta": envelope}
    body = json.dumps({"jsonrpc": "2.0", "id": "ear", "method": "subscriptions/listen", "params": listen}).encode()
    headers = {**ACCEPT_BOTH, "Mcp-Protocol-Version": STATELESS, "Mcp-Method": "subscriptions/listen"}
    target = "/everything/listener:key"
    with start_host(asgi_server=asgi_server, server_dirs=ROOT / "servers", GUMCP_SHUTDOWN_GRACE_SECONDS="20") as host:
        whole = request_bytes("POST", target, body, headers)
        with Request(host.port, "POST", target, raw=whole[:-1]) as listening:
            host.request("GET", "/health_check")  # so that what was sent before has been read
            started = terminate(host)
            until(lambda: "Draining" in host.log())
            listening.send_more(whole[-1:])
            assert listening.status == 200
            while listening.event() is not None:
                pass
            seconds = seconds_to_exit(host, started)
        record("a listener that comes late", f"exit after {seconds:.1f} s")
        assert seconds < within(5)
