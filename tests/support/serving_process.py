"""Start `tests.serving.host` and talk to it in bytes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import ssl
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from tests.support.deadlines import WAIT_SECONDS
from tests.support.processes import START_SECONDS, AnyProcess, running

HURRIED: dict[str, Any] = {
    "limits": {
        "body_bytes": 100_000,
        "header_timeout_seconds": 1.0,
        "body_grace_seconds": 0.6,
        "body_bytes_per_second": 1000,
        "body_timeout_seconds": 2.0,
        "keep_alive_seconds": 1.2,
        "slow_reader_seconds": 1.0,
    },
    "server": {"application_close_timeout": 1},
}
"""A host whose clients and applications have to be quick."""


class Host:
    """A running host process and what it has told."""

    def __init__(self, process: AnyProcess, output: Path, log: Path) -> None:
        self.process = process
        self._output = output
        self._log = log

    @property
    def told(self) -> list[dict[str, Any]]:
        """What the host has told so far."""
        whole, _, _unfinished = self._output.read_text(encoding="utf-8").rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def wait_until_told(self, seconds: float = WAIT_SECONDS, times: int = 1, **facts: Any) -> dict[str, Any]:
        """Return what was told with these facts in it; an ellipsis stands for any value."""

        def matches(told: dict[str, Any]) -> bool:
            return all(key in told and value in (..., told[key]) for key, value in facts.items())

        end = time.monotonic() + seconds
        while len(matching := [told for told in self.told if matches(told)]) < times:
            assert time.monotonic() < end, f"{facts} was not told {times} times in {seconds} s\n{self.log()}"
            time.sleep(0.01)
        return matching[times - 1]

    def count(self, **facts: Any) -> int:
        return sum(all(told.get(key) == value for key, value in facts.items()) for told in self.told)

    def log(self) -> str:
        return self._log.read_text()

    @property
    def port(self) -> int:
        return int(self.wait_until_told(START_SECONDS, port=...)["port"])

    def connect(self, source: str = "127.0.0.1") -> Client:
        return Client(socket.create_connection(("127.0.0.1", self.port), WAIT_SECONDS, source_address=(source, 0)))

    def connect_tls(self, context: ssl.SSLContext) -> Client:
        """Connect and shake hands."""
        client = self.connect()
        client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
        return client

    def get(self, target: str) -> tuple[int, Any]:
        """Make one request on a connection of its own."""
        with self.connect() as client:
            return client.get(target)

    def until(self, condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not reached in {seconds} s\n{self.log()}"
            time.sleep(0.01)

    def terminate(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def exit_status(self, seconds: float = WAIT_SECONDS) -> int:
        return self.process.wait(seconds)


class Client:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def get(self, target: str) -> tuple[int, Any]:
        self.send(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % target.encode())
        return self.answer()

    def response(self, method: str = "GET") -> HTTPResponse:
        response = HTTPResponse(self.socket, method=method)
        response.begin()
        return response

    def answer(self) -> tuple[int, Any]:
        """Read one response; a JSON body is decoded."""
        with closing(self.response()) as response:
            body = response.read()
            if response.headers["content-type"] == "application/json":
                return response.status, json.loads(body)
            return response.status, body

    def read_until(self, end: bytes) -> bytes:
        data = b""
        while not data.endswith(end):
            received = self.socket.recv(65536)
            assert received, f"the connection ended after {data!r}"
            data += received
        return data

    def read_to_end(self) -> bytes:
        """Read until the server closes; a reset counts as an end."""
        data = []
        with suppress(ConnectionResetError):
            while received := self.socket.recv(65536):
                data.append(received)
        return b"".join(data)

    def is_reset(self) -> bool:
        """Read until the server closes and tell whether it did so by a reset."""
        while True:
            try:
                if not self.socket.recv(65536):
                    return False
            except ConnectionResetError:
                return True


@contextmanager
def running_host(
    log: Path, terminal: int | None = None, wrapper: tuple[str, ...] = (), **options: Any
) -> Iterator[Host]:
    """Run a host for the length of a `with` block; kill it on leaving, if the test has not ended it.

    With a terminal, the host's log goes there, and the terminal controls the host. `wrapper` is a command that runs the
    host.
    """
    controlled = {
        "stderr": terminal,
        "start_new_session": True,
        "preexec_fn": lambda: fcntl.ioctl(2, termios.TIOCSCTTY, 0),
    }
    output = log.with_name(f"{log.name}-told")
    with running(
        [*wrapper, sys.executable, "-m", "tests.serving.host", json.dumps(options)],
        env=os.environ,
        log=log,
        output_file=output,
        **({} if terminal is None else controlled),
    ) as process:
        host = Host(process, output, log)
        try:
            yield host
        finally:
            process.kill()
            host.exit_status()


def statuses(data: bytes) -> list[int]:
    """Find the responses in what a connection has sent."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", data)]
