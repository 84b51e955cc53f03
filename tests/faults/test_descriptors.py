"""Hosts that may open few files: what they say, whom they serve."""

from __future__ import annotations

import resource
import shutil
import socket
from contextlib import ExitStack

import psutil
import pytest

from tests.faults.figures import Record
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import until
from tests.support.wire import request_bytes

pytestmark = pytest.mark.skipif(shutil.which("prlimit") is None, reason="util-linux has prlimit")


def connect(host: HostProcess, number: int, stack: ExitStack) -> list[socket.socket]:
    return [stack.enter_context(socket.create_connection(("127.0.0.1", host.port), 10)) for _ in range(number)]


def test_low_soft_limit_is_raised_without_a_word(start_host: StartHost) -> None:
    wrapper = ("prlimit", "--nofile=150:2000")
    with start_host(wrapper=wrapper, GUMCP_MAX_CONNECTIONS="1000") as host, ExitStack() as stack:
        assert psutil.Process(host.pid).rlimit(resource.RLIMIT_NOFILE) == (1512, 2000)
        connect(host, 300, stack)
        assert host.request("GET", "/health_check").status == 200
        assert "ulimit" not in host.log()


def test_low_hard_limit_means_fewer_connections_and_the_log_says_so(start_host: StartHost, record: Record) -> None:
    with start_host(wrapper=("prlimit", "--nofile=400:400")) as host, ExitStack() as stack:
        other = stack.enter_context(host.session("workshop", "other:key"))
        assert "may open 400 files, so it serves 200 connections at once and not 20000." in host.log()
        crowd = connect(host, 250, stack)
        until(lambda: host.metric("gumcp_connection_faults_total", reason="too_many_connections") >= 50)
        told = sum(_is_told(connection) for connection in crowd[-50:])
        record("250 connections of one address, 400 descriptors", f"{told} of the last 50 answered 503")
        assert told == 50
        # One address has half of them at most, as it has by default.
        source = ("127.0.0.2", 0)
        with socket.create_connection(("127.0.0.1", host.port), 10, source_address=source) as elsewhere:
            elsewhere.sendall(request_bytes("GET", "/health_check"))
            assert elsewhere.recv(12) == b"HTTP/1.1 200"
        for connection in crowd:
            connection.close()
        until(lambda: _is_healthy(host))
        assert other.call("echo", text="still here") == "still here"


def test_low_limit_for_an_address_holds_although_there_are_fewer_connections(start_host: StartHost) -> None:
    limited = start_host(wrapper=("prlimit", "--nofile=400:400"), GUMCP_MAX_CONNECTIONS_PER_ADDRESS="3")
    with limited as host:
        assert "so it serves 200 connections at once" in host.log()

        def three_are_served_and_the_fourth_is_refused() -> bool:
            with ExitStack() as stack:
                *allowed, surplus = connect(host, 4, stack)
                for connection in allowed:
                    connection.sendall(request_bytes("GET", "/health_check"))
                answers = [connection.recv(12) for connection in allowed]
                assert _is_told(surplus)
            return answers == [b"HTTP/1.1 200"] * 3

        # A connection that has just ended, as that of the check whether the host is up, may still be counted.
        until(three_are_served_and_the_fourth_is_refused)


def _is_told(connection: socket.socket) -> bool:
    return connection.recv(12) == b"HTTP/1.1 503"


def test_descriptors_that_run_out_are_told_of_once(start_host: StartHost, record: Record) -> None:
    # So few that the surplus connections that are told so need more than there are.
    with start_host(wrapper=("prlimit", "--nofile=150:150")) as host, ExitStack() as stack:
        other = stack.enter_context(host.session("workshop", "other:key"))
        for _ in range(3):
            with ExitStack() as crowd:
                connect(host, 300, crowd)
                until(lambda: "Connections cannot be accepted (EMFILE)" in host.log())
        until(lambda: _is_healthy(host))
        assert host.log().count("Connections cannot be accepted") == 1
        assert other.call("echo", text="still here") == "still here"
        record("150 descriptors, 900 connections", "one line in the log; the sessions that were there go on")


def _is_healthy(host: HostProcess) -> bool:
    try:
        return bool(host.request("GET", "/health_check").status == 200)
    except OSError:
        return False
