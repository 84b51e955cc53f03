"""Clients that read all the time, but slowly: no answer of theirs is cut short, not even by a shutdown."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.faults.figures import MIB, Record, size
from tests.support.deadlines import WAIT_SECONDS, within
from tests.support.host_process import HostProcess, StartHost
from tests.support.streamable import ACCEPT_BOTH, META, STATELESS, HandshakeSession
from tests.support.wire import request_bytes, tool_call

RESULT_BYTES = size(12, 48) * MIB
"""Far more than kernels keep for a socket."""

BYTES_A_SECOND = 6 * MIB


class SlowReader:
    """A request whose response is read at `BYTES_A_SECOND`."""

    def __init__(self, host: HostProcess, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> None:
        self._connection = socket.socket()
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        self._connection.settimeout(WAIT_SECONDS)
        self._connection.connect(("127.0.0.1", host.port))
        self._connection.sendall(request_bytes(method, target, body, {"Connection": "close", **headers}))
        self.data = bytearray()

    def read_until(self, mark: bytes) -> None:
        while mark not in self.data:
            self.data += self._receive()

    def read_result(self) -> bool:
        """Read on until the result has come or the connection has ended; whether it is whole."""
        started, received = time.monotonic(), 0
        while b'x"' not in self.data[-70_000:] and (data := self._receive()):
            self.data += data
            received += len(data)
            time.sleep(max(0.0, received / BYTES_A_SECOND - (time.monotonic() - started)))
        # The sizes of chunks stand on lines of their own in between.
        return b"x" * RESULT_BYTES in re.sub(rb"\r\n[0-9a-f]+\r\n", b"", self.data)

    def _receive(self) -> bytes:
        try:
            return self._connection.recv(64 * 1024)
        except ConnectionError:
            return b""

    def close(self) -> None:
        self._connection.close()


def big_call(**meta: Any) -> bytes:
    message = tool_call("big", "fill", characters=RESULT_BYTES, steps=1)
    message["params"]["_meta"] = {"progressToken": "p", **meta}
    return json.dumps(message).encode()


def ask_over_sse(host: HostProcess, stack: ExitStack) -> SlowReader:
    reader = stack.enter_context(closing(SlowReader(host, "GET", "/workshop/sse:key", b"", ACCEPT_BOTH)))
    reader.read_until(b"session_id=")
    reader.read_until(b"\r\n\r\n\r\n")
    target = bytes(reader.data).partition(b"data: ")[2].partition(b"\r\n")[0].decode()
    client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "slow", "version": "1"}}
    for message in (
        json.dumps({"jsonrpc": "2.0", "id": "i", "method": "initialize", "params": client}).encode(),
        b'{"jsonrpc": "2.0", "method": "notifications/initialized"}',
        big_call(),
    ):
        assert host.request("POST", target, message, ACCEPT_BOTH).status == 202
    return reader


def ask_over_streamable_http(host: HostProcess, stack: ExitStack) -> SlowReader:
    session = stack.enter_context(HandshakeSession(host, "workshop", "session:key"))
    return stack.enter_context(
        closing(SlowReader(host, "POST", session.target, big_call(), {**ACCEPT_BOTH, **session.headers}))
    )


def ask_without_session(host: HostProcess, stack: ExitStack) -> SlowReader:
    envelope = {f"{META}protocolVersion": STATELESS, f"{META}clientInfo": {"name": "slow", "version": "1"}}
    headers = {**ACCEPT_BOTH, "Mcp-Protocol-Version": STATELESS, "Mcp-Method": "tools/call", "Mcp-Name": "fill"}
    body = big_call(**envelope, **{f"{META}clientCapabilities": {}})
    return stack.enter_context(closing(SlowReader(host, "POST", "/workshop/stateless:key", body, headers)))


@pytest.mark.parametrize("asgi_server", ["daphne", "uvicorn"])
def test_streamed_results_reach_slow_readers_whole(start_host: StartHost, record: Record, asgi_server: str) -> None:
    with start_host(asgi_server=asgi_server, GUMCP_SHUTDOWN_GRACE_SECONDS="20") as host:
        read_slowly(host, record, is_stopped=False)
        read_slowly(host, record, is_stopped=True)


def read_slowly(host: HostProcess, record: Record, *, is_stopped: bool) -> None:
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        asks = (ask_over_sse, ask_over_streamable_http, ask_without_session)
        readers = [ask(host, stack) for ask in asks]
        for reader in readers:
            reader.read_until(b"notifications/progress")
            reader.read_until(b"xxxx")
        started = time.monotonic()
        if is_stopped:
            host.process.send_signal(signal.SIGTERM)
        whole = list(threads.map(SlowReader.read_result, readers))
        seconds = time.monotonic() - started
        what = "slow readers of a host that is stopped" if is_stopped else "slow readers"
        record(what, f"{sum(whole)} of 3 results of {RESULT_BYTES // MIB} MiB whole, in {seconds:.1f} s")
        assert all(whole)
        if is_stopped:
            host.process.wait(WAIT_SECONDS)
            assert time.monotonic() - started < within(seconds + 5)
