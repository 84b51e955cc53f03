"""How a fleet is started: by systemd's socket, and what is refused with a sentence."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import ROOT, STOP_SECONDS, environment, free_port, manage, run, running, until
from tests.support.service_manager import Told

pytestmark = pytest.mark.usefixtures("processes")

AS_SYSTEMD: Final = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def status(port: int) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("GET", "/health_check")
        return connection.getresponse().status


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        yield listener


@pytest.mark.parametrize("workers", ["1", "2"])
def test_socket_of_systemd_is_served_and_systemd_is_told(
    listener: socket.socket, workers: str, tmp_path: Path, migrated_database: Path
) -> None:
    (tmp_path / "gumcp.sqlite3").write_bytes(migrated_database.read_bytes())
    port, descriptor = listener.getsockname()[1], listener.fileno()
    serve = ["manage.py", "serve", "--port", str(free_port()), "--workers", workers]
    with (
        Told() as told,
        running(
            [sys.executable, "-c", AS_SYSTEMD, str(descriptor), *serve],
            env=environment(tmp_path, NOTIFY_SOCKET=told.address, WATCHDOG_USEC="600000"),
            log=tmp_path / "log",
            is_ready=lambda: f"health        http://127.0.0.1:{port}/" in (tmp_path / "log").read_text(),
            pass_fds=(descriptor,),
        ) as process,
    ):
        assert status(port) == 200
        until(lambda: told.messages.count("READY=1") == 1)
        until(lambda: told.messages.count("WATCHDOG=1") > 2)
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)
        assert told.messages.count("STOPPING=1") == 1


def test_several_sockets_of_systemd_are_refused(listener: socket.socket, tmp_path: Path) -> None:
    source = AS_SYSTEMD.replace('LISTEN_FDS="1"', 'LISTEN_FDS="2"')
    done = subprocess.run(
        [sys.executable, "-c", source, str(listener.fileno()), "manage.py", "serve"],
        cwd=ROOT,
        env=environment(tmp_path),
        pass_fds=(listener.fileno(),),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "LISTEN_FDS is 2. The host serves one socket" in done.stderr


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"GUMCP_SECRET_KEY": "x" * 50}, "Set DATABASE_URL to a PostgreSQL that all machines use."),
        ({"DATABASE_URL": "postgres://me@127.0.0.1/gumcp"}, "Set the same one on all machines"),
    ],
)
def test_machine_that_lacks_what_all_need_is_refused(settings: dict[str, str], sentence: str, tmp_path: Path) -> None:
    settings = {"GUMCP_PEER_ADDRESS": f"127.0.0.1:{free_port()}", "GUMCP_PORT": str(free_port()), **settings}
    done = manage("serve", data_dir=tmp_path, **settings)
    assert done.returncode == 1
    assert sentence in done.stderr


def test_workers_of_uvicorn_are_refused(tmp_path: Path) -> None:
    command = ["-m", "uvicorn", "--port", str(free_port()), "--workers", "2", "gumcp_site.asgi:application"]
    done = run(sys.executable, *command, data_dir=tmp_path)
    assert "manage.py serve --workers N" in done.stderr
