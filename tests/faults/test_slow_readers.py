"""Clients that ask for much and read nothing: what they cost the host, and what the others feel."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.figures import MIB, Record, Watched, milliseconds, size
from tests.support.deadlines import are_quick
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import until
from tests.support.wire import request_bytes, tool_call

SLOW_SECONDS = size(2, 30)
"""How long a client may leave its stream full; 30 s is the host's own setting."""

MIB_EACH = 200
"""Much more than what is held: the few results that are made before backpressure begins, whatever is asked for."""
READERS = size(10, 50)


@contextmanager
def reader_that_never_reads(host: HostProcess, name: str) -> Iterator[str]:
    """Open a stream, read where to post, and nothing after that."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", host.port))
        connection.sendall(request_bytes("GET", f"/workshop/{name}:key", headers={"Accept": "text/event-stream"}))
        head = b""
        while b"session_id=" not in head or not head.endswith(b"\r\n"):
            head += connection.recv(4096)
        yield head.partition(b"data: ")[2].partition(b"\r\n")[0].decode()


def ask(host: HostProcess, endpoint: str, message: object) -> int:
    return host.request("POST", endpoint, json.dumps(message).encode(), {"Content-Type": "application/json"}).status


def ask_for_much(host: HostProcess, endpoint: str, mib: int) -> int:
    """Ask for so many results of a MiB each; returns how many were still accepted."""
    client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "deaf", "version": "1"}}
    ask(host, endpoint, {"jsonrpc": "2.0", "id": "i", "method": "initialize", "params": client})
    ask(host, endpoint, {"jsonrpc": "2.0", "method": "notifications/initialized"})
    return sum(ask(host, endpoint, tool_call(number, "fill", characters=MIB)) == 202 for number in range(mib))


@pytest.mark.parametrize("asgi_server", ["daphne", "uvicorn"])
def test_readers_that_never_read_cost_little_memory_and_are_cut(
    start_host: StartHost, record: Record, asgi_server: str
) -> None:
    settings = {"GUMCP_SLOW_READER_SECONDS": str(SLOW_SECONDS), "GUMCP_CALL_TIMEOUT_SECONDS": "0"}
    with start_host(asgi_server=asgi_server, **settings) as host, host.session("bystander", "other:key") as other:
        other.call("echo", text="warm")
        watched = Watched(host.pid)
        with reader_that_never_reads(host, "first") as endpoint:
            base = watched.mib
            accepted = ask_for_much(host, endpoint, MIB_EACH)
            grown = watched.peak_mib_while(lambda: host.metric("gumcp_slow_readers_total") < 1, SLOW_SECONDS + 5) - base
        record("one reader", f"{accepted} of {MIB_EACH} MiB asked for, {grown:.1f} MiB held")
        until(lambda: host.metric("gumcp_active_connections", server="workshop") == 0)
        assert host.metric("gumcp_slow_readers_total") == 1
        assert grown < MIB_EACH / 4  # without backpressure it was four times what it asked for


def test_many_readers_that_never_read_slow_nobody_down(start_host: StartHost, record: Record) -> None:
    settings = {"GUMCP_SLOW_READER_SECONDS": str(SLOW_SECONDS), "GUMCP_CALL_TIMEOUT_SECONDS": "0"}
    with start_host(**settings) as host, host.session("bystander", "other:key") as other:
        other.call("echo", text="warm")
        watched, latencies = Watched(host.pid), []
        readers = [reader_that_never_reads(host, f"deaf-{number}") for number in range(READERS)]
        endpoints = [reader.__enter__() for reader in readers]
        base = watched.mib
        for endpoint in endpoints:
            ask_for_much(host, endpoint, size(4, 16))
        peak = watched.mib
        end = time.monotonic() + SLOW_SECONDS + 5
        while host.metric("gumcp_slow_readers_total") < READERS:
            assert time.monotonic() < end
            for _ in range(20):
                started = time.monotonic()
                other.call("echo", text="x")
                latencies.append(time.monotonic() - started)
            peak = max(peak, watched.mib)
        for reader in readers:
            reader.__exit__(None, None, None)
        record(f"{READERS} readers", f"{peak - base:.0f} MiB held; calls of another session {milliseconds(latencies)}")
        assert are_quick(latencies, 0.25)
        assert (peak - base) / READERS < 12
        until(lambda: host.metric("gumcp_active_connections", server="workshop") == 0)
