"""Clients that never finish what they say: when each is cut, and what the others feel meanwhile."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import ExitStack, suppress

from tests.faults.figures import Record, Watched, milliseconds, size
from tests.support.deadlines import are_quick, within
from tests.support.host_process import HostProcess
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
