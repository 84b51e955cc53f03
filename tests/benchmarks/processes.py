"""Hosts under measurement: how each is started, found and ended.

A further row of the benchmark (other settings, another ASGI server) is a further ``Host``.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[2]

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 10.0


class HostFailed(Exception):
    """A host did not start, or died; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Host:
    """One way to serve the servers: a Python command line, and what it needs around it."""

    name: str
    title: str
    arguments: tuple[str, ...]
    """What Python runs; ``{port}`` stands for the port."""
    preparation: tuple[tuple[str, ...], ...] = ()
    """What Python runs before, to its end, in the same environment."""
    environment: Mapping[str, str] = field(default_factory=dict)
    checks_keys: bool = False
    """Whether the last preparation printed the session keys to call with, as a JSON list."""
    directory: Path = PROJECT


_UVICORN: Final = (
    *("-m", "uvicorn", "--loop", "uvloop", "--log-level", "warning", "--no-access-log"),
    *("--host", "127.0.0.1", "--port", "{port}"),
)
_DAPHNE: Final = ("-m", "daphne", "-b", "127.0.0.1", "-p", "{port}")
_MIGRATE: Final = ("manage.py", "migrate", "--verbosity", "0")

REFERENCE: Final = Host("reference", "SDK on uvicorn", (*_UVICORN, "tests.benchmarks.reference:application"))
DAPHNE: Final = Host("daphne", "project on Daphne", (*_DAPHNE, "gumcp_site.asgi:application"), (_MIGRATE,))
UVICORN: Final = Host("uvicorn", "project on uvicorn", (*_UVICORN, "gumcp_site.asgi:application"), (_MIGRATE,))

_UNLIMITED: Final = "1000000000/minute"
"""Counted like any limit, and never reached."""

_KEYS: Final = {
    "GUMCP_AUTH": "keys",
    "GUMCP_LIMIT_REQUESTS_PER_KEY": _UNLIMITED,
    "GUMCP_LIMIT_REQUESTS_PER_ADDRESS": _UNLIMITED,
    "GUMCP_LIMIT_CALLS_PER_KEY": _UNLIMITED,
    "GUMCP_MAX_SESSIONS_PER_KEY": "1000000",
    "GUMCP_MAX_SESSIONS_PER_ADDRESS": "1000000",
}
_ISSUE: Final = ("-m", "tests.benchmarks.issue_keys")


def with_keys(host: Host) -> Host:
    """The same host, checking keys and counting limits."""
    return replace(
        host,
        name=f"{host.name}-keys",
        title=f"{host.title}, keys",
        preparation=(*host.preparation, _ISSUE),
        environment={**host.environment, **_KEYS},
        checks_keys=True,
    )


HOSTS: Final = {host.name: host for host in (REFERENCE, DAPHNE, UVICORN, with_keys(DAPHNE), with_keys(UVICORN))}


def of_another_checkout(host: Host, directory: Path) -> Host:
    """The same host from another checkout of the project: what it was before a change."""
    return replace(host, name=f"{host.name}-before", title=f"{host.title}, before", directory=directory)


@dataclass(frozen=True)
class Running:
    """A host that accepts connections."""

    host: Host
    port: int
    pid: int
    session_keys: tuple[str, ...] = ()
    """What to call with, where the host does not take any key."""


@contextmanager
def running(host: Host, server_dirs: Path) -> Iterator[Running]:
    """Start a host with a database and a port of its own, and end it on leaving.

    :raises HostFailed: if it cannot be prepared, or does not accept connections within half a minute.
    """
    scratch = Path(tempfile.mkdtemp(prefix="gumcp-bench-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GUMCP_")}
    environment |= {
        "GUMCP_DATA_DIR": str(scratch),
        "DATABASE_URL": f"sqlite:///{scratch / 'benchmark.sqlite3'}",  # never the one that an operator's shell names
        "GUMCP_METRICS_PORT": "0",
        "GUMCP_SERVER_DIRS": str(server_dirs),
        **host.environment,
    }
    log_path = scratch / "log"
    printed = b""
    try:
        with log_path.open("wb") as log:
            for arguments in host.preparation:
                done = subprocess.run(
                    [sys.executable, *arguments],
                    cwd=host.directory,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    timeout=_START_SECONDS,
                    check=False,
                )
                printed = done.stdout
                if done.returncode != 0:
                    raise HostFailed(f"{host.title}: {' '.join(arguments)} failed\n{_tail(log_path)}")
            port = _free_port()
            arguments = tuple(argument.format(port=port) for argument in host.arguments)
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=host.directory, env=environment, stdout=log, stderr=log
            )
        try:
            _wait_until_it_accepts(host, process, port, log_path)
            yield Running(host, port, process.pid, tuple(json.loads(printed)) if host.checks_keys else ())
        finally:
            _stop(process)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _wait_until_it_accepts(host: Host, process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise HostFailed(f"{host.title}: exited with {process.returncode}\n{_tail(log_path)}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise HostFailed(f"{host.title}: no connection within {_START_SECONDS:.0f} s\n{_tail(log_path)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-25:])
