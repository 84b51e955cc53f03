"""A host whose log is a pipe that is full and that nobody reads: it stands still, and it can be ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.figures import Record
from tests.support.deadlines import within
from tests.support.processes import HOST_COMMANDS, environment, free_port, running, until
from tests.support.wire import exchange, request_bytes

GRACE_SECONDS = 1.0


class Unread:
    """A pipe without a reader's attention."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)

    def fill(self) -> None:
        # Opened anew: the flag belongs to the open file, which the host shares.
        own = os.open(f"/proc/self/fd/{self.writer}", os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(own, b"x")
        os.close(own)

    def empty(self) -> None:
        os.set_blocking(self._reader, False)
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 65536)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self.writer)


@contextlib.contextmanager
def blocked_host(
    folder: Path, migrated_database: Path, asgi_server: str, grace_seconds: float
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a host, fill its log, and have it log until it stands still."""
    shutil.copy(migrated_database, folder / "gumcp.sqlite3")
    port, log = free_port(), Unread()
    application = "gumcp_site.asgi:application"
    arguments = (part.format(port=port, application=application) for part in HOST_COMMANDS[asgi_server])

    def is_healthy() -> bool:
        log.empty()
        return exchange(port, "GET", "/health_check").status == 200

    try:
        with running(
            [sys.executable, *arguments],
            env=environment(folder, GUMCP_SHUTDOWN_GRACE_SECONDS=str(grace_seconds)),
            log=folder / "log",
            is_ready=is_healthy,
            stdout=log.writer,
            stderr=log.writer,
        ) as process:
            log.fill()
            until(lambda: not _is_answering(port))
            yield process
            process.kill()
    finally:
        log.close()


def _is_answering(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.settimeout(0.5)
        client.sendall(request_bytes("GET", "/health_check"))
        try:
            return bool(client.recv(1))
        except TimeoutError:
            return False


@pytest.mark.parametrize("asgi_server", ["daphne", "uvicorn"])
def test_host_with_a_full_log_ends_when_its_grace_is_over(
    tmp_path: Path, migrated_database: Path, record: Record, asgi_server: str
) -> None:
    with blocked_host(tmp_path, migrated_database, asgi_server, GRACE_SECONDS) as process:
        started = time.monotonic()
        process.terminate()
        process.wait(GRACE_SECONDS + 5)
        seconds = time.monotonic() - started
        record("a log that nobody reads", f"exit after {seconds:.1f} s")
        assert seconds < within(GRACE_SECONDS + 1.5)
