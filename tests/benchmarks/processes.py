"""Hosts under measurement: how each is started, found and ended.

A further row of the benchmark (other settings, another ASGI server) is a further ``Host``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tests.support import processes
from tests.support.environments import steps_to_make
from tests.support.processes import ROOT, START_SECONDS, ProcessFailed, environment, free_port, is_listening


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
    directory: Path = ROOT
    is_ours: bool = True
    """Whether it is the project, and not what the project is compared with."""
    requirements: tuple[str, ...] = ()
    """What an environment of its own has; empty for one that runs in the project's."""


_UVICORN: Final = (
    *("-m", "uvicorn", "--loop", "uvloop", "--log-level", "warning", "--no-access-log"),
    *("--host", "127.0.0.1", "--port", "{port}"),
)
_DAPHNE: Final = ("-m", "daphne", "-b", "127.0.0.1", "-p", "{port}")
_MIGRATE: Final = ("manage.py", "migrate", "--verbosity", "0")

REFERENCE: Final = Host(
    "reference", "SDK on uvicorn", (*_UVICORN, "tests.benchmarks.reference:application"), is_ours=False
)
FASTMCP: Final = Host(
    "fastmcp",
    "FastMCP on uvicorn",
    (*_UVICORN, "tests.benchmarks.fastmcp_host:application"),
    is_ours=False,
    requirements=("fastmcp==4.2.3", "uvicorn[standard]==0.54.0"),
)
FLOOR: Final = Host("floor", "the floor", ("-m", "tests.benchmarks.floor", "{port}"), is_ours=False)
_ROOM: Final = {"GUMCP_MAX_SESSIONS_PER_KEY": "1000000", "GUMCP_MAX_SESSIONS_PER_ADDRESS": "1000000"}
"""The load client is one address, and may hold thousands of sessions."""

DAPHNE: Final = Host("daphne", "project on Daphne", (*_DAPHNE, "gumcp_site.asgi:application"), (_MIGRATE,), _ROOM)
UVICORN: Final = Host("uvicorn", "project on uvicorn", (*_UVICORN, "gumcp_site.asgi:application"), (_MIGRATE,), _ROOM)

_UNLIMITED: Final = "1000000000/minute"
"""Counted like any limit, and never reached."""

_KEYS: Final = {
    "GUMCP_AUTH": "keys",
    "GUMCP_LIMIT_REQUESTS_PER_KEY": _UNLIMITED,
    "GUMCP_LIMIT_REQUESTS_PER_ADDRESS": _UNLIMITED,
    "GUMCP_LIMIT_CALLS_PER_KEY": _UNLIMITED,
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


HOSTS: Final = {
    host.name: host for host in (REFERENCE, FASTMCP, FLOOR, DAPHNE, UVICORN, with_keys(DAPHNE), with_keys(UVICORN))
}


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

    :raises ProcessFailed: if it or its environment cannot be prepared, or it does not accept connections within half a
        minute.
    """
    with tempfile.TemporaryDirectory(prefix="gumcp-bench-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        env = environment(scratch, GUMCP_SERVER_DIRS=str(server_dirs), **host.environment)
        printed = ""
        for arguments in host.preparation:
            printed = _prepare(host, arguments, env)
        port = free_port()
        with processes.running(
            [_python_of(host), *(argument.format(port=port) for argument in host.arguments)],
            env=env,
            log=scratch / "log",
            is_ready=lambda: is_listening(port),
            cwd=host.directory,
            # A new interpreter, as users start it. Without an option the project would be forked from a warm one.
            stdin=subprocess.DEVNULL,
        ) as process:
            yield Running(host, port, process.pid, tuple(json.loads(printed)) if host.checks_keys else ())


@contextmanager
def started_on_core(number: int | None) -> Iterator[None]:
    """Let processes that are started inside the block run on this core only; on all cores if it is None."""
    if number is None:
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(allowed)[number]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _python_of(host: Host) -> str:
    """The Python of the host's environment, which is made when it is first needed."""
    if not host.requirements:
        return sys.executable
    folder = ROOT / f".venv-benchmark-{host.name}"
    stamp, wanted = folder / "installed", f"{sys.version} {host.requirements}"
    if not stamp.exists() or stamp.read_text() != wanted:
        for step in steps_to_make(folder, *host.requirements):
            done = subprocess.run(step, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise ProcessFailed(f"{host.title}: {' '.join(step)} failed\n{done.stderr}")
        stamp.write_text(wanted)
    return str(folder / "bin" / "python")


def _prepare(host: Host, arguments: tuple[str, ...], env: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=host.directory,
        env=env,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise ProcessFailed(f"{host.title}: {' '.join(arguments)} failed\n{done.stderr}")
    return done.stdout
