"""Connections that come all at once, ask for another protocol, or vanish: the host is the same afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import threading
import time

import pytest

from tests.benchmarks.eras import SseSession
from tests.faults.figures import Record, Watched, is_no_more_than, milliseconds, size
from tests.faults.vanishing import vanish
from tests.support.deadlines import are_quick
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import until
from tests.support.wire import request_bytes

HOST_OPTIONS = {"GUMCP_PING_SECONDS": "1"}
"""A silent stream is written to every second, so that one whose client vanished is noticed within the test."""

CONNECTIONS = size(500, 2000)
CYCLES = size(400, 10_000)
AT_ONCE = 50

LOST_SECONDS = 90.0
"""How soon the host has noticed that a client is gone which it has nothing to say to."""


def test_connections_are_taken_while_the_loop_is_held(probed_host: HostProcess, record: Record) -> None:
    host = probed_host
    held = threading.Thread(target=host.request, args=("GET", "/inside/hold?seconds=0.5"))
    held.start()
    time.sleep(0.1)
    latencies: list[float] = []
    waiting = selectors.DefaultSelector()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        for number in range(CONNECTIONS):
            # Spread over a second.
            if (wait := began + number / CONNECTIONS - time.monotonic()) > 0.002:
                time.sleep(wait)
            connection = stack.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", host.port))
            waiting.register(connection, selectors.EVENT_WRITE, time.monotonic())
            collect(waiting, latencies, 0)
        end = time.monotonic() + 10
        while waiting.get_map() and time.monotonic() < end:
            collect(waiting, latencies, 0.05)
        assert len(latencies) == CONNECTIONS
        held.join(10)
        assert host.request("GET", "/health_check").status == 200
    record(f"{CONNECTIONS} connections in a second, the loop held for 0.5 s", f"to connect {milliseconds(latencies)}")
    # The kernel takes them into the queue of the port. One that finds it full tries again after a second.
    assert are_quick(latencies, 0.5)


def collect(waiting: selectors.BaseSelector, latencies: list[float], seconds: float) -> None:
    for key, _ in waiting.select(seconds):
        connection = key.fileobj
        assert isinstance(connection, socket.socket)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        latencies.append(time.monotonic() - key.data)
        waiting.unregister(connection)


async def cycles(port: int, count: int) -> str:
    """Connect, call, drop; every other one without a FIN."""
    numbers, how = iter(range(count)), ""

    async def keep_going() -> None:
        nonlocal how
        for number in numbers:
            session = SseSession(port, "workshop", f"dropper-{number % 20}:key")
            await session.open()
            text, _ = await session.call("echo", {"text": str(number)})
            assert text == str(number)
            if number % 2:
                how = vanish(session)
            else:
                session.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(keep_going())
    return how


def test_cycles_of_connect_call_drop_leave_nothing_behind(probed_host: HostProcess, record: Record) -> None:
    host, watched = probed_host, Watched(probed_host.pid)
    asyncio.run(cycles(host.port, 2))
    host.request("GET", "/health_check")
    descriptors = watched.descriptors
    asyncio.run(cycles(host.port, 2000))  # until memory has stopped to grow: what is kept for a while is kept by then
    until(lambda: watched.descriptors <= descriptors, LOST_SECONDS)
    until(lambda: host.request("GET", "/inside/").json["uses"] == 0, 60)
    before = host.request("GET", "/inside/").json
    mib = watched.mib
    started = time.monotonic()
    how = asyncio.run(cycles(host.port, CYCLES))
    dropped = time.monotonic()
    until(lambda: host.metric("gumcp_active_connections", server="workshop") == 0, LOST_SECONDS)
    noticed = time.monotonic() - dropped
    until(lambda: is_no_more_than(before, host.request("GET", "/inside/").json), 20)
    until(lambda: watched.descriptors <= descriptors, LOST_SECONDS)
    grown = watched.mib - mib
    record(f"{CYCLES} cycles", f"{dropped - started:.0f} s; half dropped {how}, the last noticed after {noticed:.1f} s")
    record("afterwards", f"tasks, streams and {descriptors} descriptors as before, memory {grown:+.1f} MiB")
    # An allocator keeps some; what grows with the cycles would be more.
    assert grown < 10 + CYCLES / 1024


UPGRADES = {
    "WebSocket": {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    },
    "h2c": {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"},
    "TLS": {"Connection": "Upgrade", "Upgrade": "TLS/1.2"},
}


@pytest.mark.parametrize("path", ["/health_check", "/nobody/ada", "/workshop"])
@pytest.mark.parametrize("name", UPGRADES)
def test_upgrade_is_refused_or_ignored_without_a_traceback(probed_host: HostProcess, name: str, path: str) -> None:
    expected = {200} if path == "/health_check" else {404}
    answer = probed_host.request("GET", path, headers={**UPGRADES[name], "Connection": "close, Upgrade"})
    assert answer.status in expected | ({400, 403, 426} if name == "WebSocket" else set())
    assert answer.headers["upgrade"] is None
    assert "Traceback" not in probed_host.log()


def test_http_2_by_prior_knowledge_is_refused(probed_host: HostProcess) -> None:
    with socket.create_connection(("127.0.0.1", probed_host.port), 10) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        data = b""
        with contextlib.suppress(ConnectionError):
            while received := connection.recv(4096):
                data += received
    assert data[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 505", b"")
    assert "Traceback" not in probed_host.log()


def test_thousand_upgrades_leave_the_host_quick(probed_host: HostProcess, record: Record) -> None:
    count, data = size(200, 1000), request_bytes("GET", "/nobody/ada", headers=UPGRADES["WebSocket"])
    started = time.monotonic()
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", probed_host.port), 10) as connection:
            connection.sendall(data)
            assert connection.recv(4096).startswith(b"HTTP/1.1 4")
    record(f"{count} WebSocket handshakes", f"{(time.monotonic() - started) / count * 1000:.1f} ms each")
    assert "Traceback" not in probed_host.log()


def test_killed_host_is_back_with_its_clients(
    start_host: StartHost, tmp_path_factory: pytest.TempPathFactory, record: Record
) -> None:
    count, data_dir = size(100, 1000), tmp_path_factory.mktemp("killed")
    states = "SELECT state, count(*) AS sessions FROM records_sessionrecord GROUP BY state ORDER BY state"

    async def open_all(port: int) -> list[SseSession]:
        sessions = [SseSession(port, "workshop", f"client-{number}:key") for number in range(count)]
        for start in range(0, count, AT_ONCE):
            await asyncio.gather(*(session.open() for session in sessions[start : start + AT_ONCE]))
        return sessions

    async def open_and_kill(host: HostProcess) -> float:
        sessions = await open_all(host.port)
        await asyncio.to_thread(until, lambda: host.rows(states) == [{"state": "open", "sessions": count}])
        host.kill()
        for session in sessions:
            session.close()
        return time.monotonic()

    async def come_back(port: int) -> None:
        sessions = await open_all(port)
        for number, session in enumerate(sessions):
            assert (await session.call("echo", {"text": str(number)}))[0] == str(number)
        for session in sessions:
            session.close()

    with start_host(data_dir=data_dir, asgi_server="serve") as host:
        killed = asyncio.run(open_and_kill(host))
    with start_host(data_dir=data_dir, asgi_server="serve") as host:
        restarted = time.monotonic() - killed
        until(lambda: {"state": "lost", "sessions": count} in host.rows(states))
        marked = time.monotonic() - killed
        asyncio.run(come_back(host.port))
        back = time.monotonic() - killed
    record(
        f"kill -9 with {count} sessions",
        f"healthy again after {restarted:.1f} s, rows marked after {marked:.1f} s, "
        f"all clients back and answered after {back:.1f} s",
    )
    assert restarted < 15
