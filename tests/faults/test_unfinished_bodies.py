"""Large bodies that are nearly whole and never end, from clients without a key: what they may hold in all."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from contextlib import ExitStack

from tests.faults.figures import MIB, Record, Watched, milliseconds, size
from tests.support.deadlines import are_quick
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import until
from tests.support.wire import JSON, request_bytes, tool_call

SENDERS = size(40, 150)
BODY_BYTES = 4 * MIB
LIMIT_BYTES = size(32, 256) * MIB


def nearly_send(host: HostProcess) -> socket.socket:
    """Send 4 MiB but for ten bytes."""
    connection = socket.create_connection(("127.0.0.1", host.port), 10)
    fields = f"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    with contextlib.suppress(ConnectionError):
        connection.sendall(b"POST /workshop/nobody:nokey HTTP/1.1\r\n" + fields.encode() + bytes(BODY_BYTES - 10))
    return connection


def answer(host: HostProcess, text: str, source: str) -> int:
    body = json.dumps(tool_call(1, "echo", text=text)).encode()
    with socket.create_connection(("127.0.0.1", host.port), 10, source_address=(source, 0)) as connection:
        connection.sendall(request_bytes("POST", "/workshop/ada", body, JSON))
        return int(connection.recv(12)[9:12])


def test_unfinished_bodies_hold_no_more_than_all_may_and_keep_nobody_out(start_host: StartHost, record: Record) -> None:
    with start_host(GUMCP_MAX_UNFINISHED_BODIES_BYTES=str(LIMIT_BYTES)) as host, ExitStack() as stack:
        other = stack.enter_context(host.session("bystander", "other:key"))
        other.call("echo", text="warm")
        # What the first large message costs once, such as the thread that decodes it, is not held for senders.
        assert answer(host, "x" * 3 * MIB, "127.0.0.1") == 400
        watched, latencies = Watched(host.pid), []
        base = peak = watched.mib
        for _ in range(SENDERS):
            stack.callback(nearly_send(host).close)
            peak = max(peak, watched.mib)
            started = time.monotonic()
            other.call("echo", text="x")
            latencies.append(time.monotonic() - started)
        surplus = SENDERS - LIMIT_BYTES // (BODY_BYTES - 10)
        until(lambda: host.metric("gumcp_connection_faults_total", reason="too_many_bodies") >= surplus)

        # None has a session: whatever is not a 503 has been read and understood.
        statuses = [
            answer(host, text, source) for text in ("x", "x" * 3 * MIB) for source in ("127.0.0.1", "127.0.0.2")
        ]
        record(
            f"{SENDERS} bodies of 4 MiB less ten bytes",
            f"{watched.mib - base:.0f} MiB held (at most {peak - base:.0f}) of {LIMIT_BYTES // MIB} that all may hold; "
            f"calls of another session {milliseconds(latencies)}; then a small and a large message from the same and "
            f"from another address: {statuses}",
        )
        assert 503 not in statuses
        assert peak - base < LIMIT_BYTES / MIB * 1.2 + 16
        assert are_quick(latencies, 0.25)
