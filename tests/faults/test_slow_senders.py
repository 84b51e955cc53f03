"""Clients that never finish what they say: when each is cut, and what the others feel meanwhile."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import ExitStack, suppress

from tests.faults.figures import Record, Watched, milliseconds, size
from tests.support.deadlines import are_quick, within
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import until

EACH = size(100, 500)

HEADER_SECONDS = 15.0
BODY_SECONDS = 10.0
"""The host's own deadlines (`gateway.serving.limits`): they are no settings, and short enough to be waited for."""

SLACK_SECONDS = 4.0

HEAD = b"POST /workshop/slow HTTP/1.1\r\nHost: 127.0.0.1\r\n"
BODY = HEAD + b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"


class Drip:
    """Sockets that were told the same and are fed a byte each, now and then."""

    def __init__(self, stack: ExitStack, port: int, opening: bytes, byte: bytes) -> None:
        self.byte = byte
        self.sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(EACH)]
        self.cut_after: list[float] = []
        self.said: list[bytes] = []
        self._started = time.monotonic()
        for connection in self.sockets:
            connection.sendall(opening)

    def feed_and_look(self) -> None:
        open_ones = []
        poll = select.poll()  # not select(), which ends at descriptor 1024
        for connection in self.sockets:
            poll.register(connection, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(0)}
        for connection in self.sockets:
            if connection.fileno() in ready:
                said = b""
                with suppress(ConnectionError):
                    said = connection.recv(4096)
                self.said.append(said[9:12])
                self.cut_after.append(time.monotonic() - self._started)
                continue
            if self.byte:
                with suppress(ConnectionError):
                    connection.sendall(self.byte)
            open_ones.append(connection)
        self.sockets = open_ones


def test_clients_that_never_finish_are_cut_and_slow_nobody_down(host: HostProcess, record: Record) -> None:
    watched, latencies, is_over = Watched(host.pid), [], threading.Event()

    def keep_calling() -> None:
        while not is_over.is_set():
            started = time.monotonic()
            other.call("echo", text="x")
            latencies.append(time.monotonic() - started)
            is_over.wait(0.02)

    caller = threading.Thread(target=keep_calling)
    with ExitStack() as stack:
        other = stack.enter_context(host.session("bystander", "other:key"))
        before = watched.descriptors
        drips = {
            "headers that drip": Drip(stack, host.port, HEAD, b"X"),
            "bodies that drip": Drip(stack, host.port, BODY, b" "),
            "idle sockets": Drip(stack, host.port, b"", b""),
        }
        caller.start()
        end = time.monotonic() + HEADER_SECONDS + SLACK_SECONDS
        while any(drip.sockets for drip in drips.values()) and time.monotonic() < end:
            for drip in drips.values():
                drip.feed_and_look()
            time.sleep(0.5)
        is_over.set()
        caller.join(10)
        for what, drip in drips.items():
            assert not drip.sockets, f"{len(drip.sockets)} {what} are open"
            record(f"{EACH} {what}", f"cut after {min(drip.cut_after):.1f} to {max(drip.cut_after):.1f} s")
    record("calls meanwhile", milliseconds(latencies))
    assert set(drips["headers that drip"].said) <= {b"408", b""}
    assert set(drips["bodies that drip"].said) <= {b"408", b""}
    assert min(drips["headers that drip"].cut_after) > HEADER_SECONDS - 1
    assert min(drips["bodies that drip"].cut_after) > BODY_SECONDS - 1
    assert max(drips["bodies that drip"].cut_after) < within(BODY_SECONDS + SLACK_SECONDS)
    assert are_quick(latencies, 0.25)
    assert host.metric("gumcp_connection_faults_total", reason="header_timeout") >= EACH
    assert host.metric("gumcp_connection_faults_total", reason="body_timeout") >= EACH
    # Threads of the host open their connections to the database when they first need them.
    until(lambda: watched.descriptors < before + EACH / 10)


def test_bodies_that_drip_or_come_in_tiny_parts_are_refused_on_uvicorn_too(start_host: StartHost) -> None:
    chunked = HEAD + b"Content-Type: application/json\r\nAccept: */*\r\nTransfer-Encoding: chunked\r\n\r\n"
    accepting = BODY.replace(b"Host", b"Accept: */*\r\nHost", 1)
    with start_host(asgi_server="uvicorn") as host, ExitStack() as stack:
        slow = stack.enter_context(socket.create_connection(("127.0.0.1", host.port), 10))
        slow.sendall(accepting)
        wasteful = stack.enter_context(socket.create_connection(("127.0.0.1", host.port), 10))
        wasteful.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wasteful.sendall(chunked)
        answer = b""
        end = time.monotonic() + within(10)
        while not answer and time.monotonic() < end:
            wasteful.sendall(b"1\r\n \r\n")
            if select.select([wasteful], [], [], 0.005)[0]:
                answer = wasteful.recv(4096)
        assert answer.startswith(b"HTTP/1.1 400"), answer
        assert b"connection: close" in answer
        slow.settimeout(within(BODY_SECONDS + SLACK_SECONDS))
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        assert host.metric("gumcp_refused_requests_total", reason="wasteful_body") == 1
        assert host.metric("gumcp_refused_requests_total", reason="body_timeout") == 1


def test_open_requests_of_one_address_are_bounded_on_uvicorn(start_host: StartHost) -> None:
    stream = b"GET /workshop/ada:key HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n"
    with start_host(asgi_server="uvicorn", GUMCP_MAX_CONNECTIONS_PER_ADDRESS="3") as host, ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", host.port), 10)) for _ in range(4)]
        answers = []
        for connection in sockets:
            connection.sendall(stream)
            answers.append(connection.recv(4096))
        assert [answer[9:12] for answer in answers] == [b"200", b"200", b"200", b"503"]
        assert b"connection: close" in answers[3]
        sockets[0].close()
        until(lambda: host.request("GET", "/health_check").status == 200)
        assert host.metric("gumcp_refused_requests_total", reason="too_many_connections") >= 1
