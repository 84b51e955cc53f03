"""Host processes for tests: the project, started, watched and ended. Wire-level clients are in `wire`."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.support.deadlines import WAIT_SECONDS
from tests.support.processes import (
    HOST_COMMANDS,
    PLAIN_SERVERS,
    STOP_SECONDS,
    environment,
    free_port,
    is_listening,
    migrate,
    running,
    until,
)
from tests.support.wire import Answer, SseStream, exchange

StartHost = Callable[..., Any]
"""The fixture `start_host`: a context manager of a running `HostProcess`; options as of `running_host`."""

ORPHAN_SECONDS: Final = 2.0
"""How long a child process may outlive its host: it has to notice."""

SIGNS_OF_NEGLECT: Final = re.compile(
    r".*(?:was never retrieved|was never awaited|Task was destroyed|Exception in callback|Exception ignored"
    r"|took too long to shut down|SynchronousOnlyOperation).*"
)
"""What the log of a host must never show, whatever a test did to it."""


class HostProcess:
    """A running host: what it answers, what it logs, what it counts and what it writes down."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, metrics_port: int, data_dir: Path, log: Path
    ) -> None:
        self.process = process
        self.pid = process.pid
        self.port = port
        self.metrics_port = metrics_port
        self.data_dir = data_dir
        self.log_path = log
        self.base_url = f"http://127.0.0.1:{port}"

    def url(self, server: str, key: str) -> str:
        return f"{self.base_url}/{server}/{key}"

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def request(
        self, method: str, target: str | bytes, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Make one request on a connection of its own."""
        return exchange(self.port, method, target, body, headers)

    def stream(self, server: str, key: str, headers: Mapping[str, str] | None = None) -> SseStream:
        """Open an event stream; what comes back may also be a refusal."""
        return SseStream(self.port, f"/{server}/{key}", headers)

    def session(self, server: str, key: str, **options: Any) -> SseStream:
        """Open an event stream and initialize its session."""
        stream = self.stream(server, key)
        stream.initialize(**options)
        return stream

    def metrics_text(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=WAIT_SECONDS) as response:
            return str(response.read().decode())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples called `name` that have these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics_text())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """Read from the host's database."""
        with closing(sqlite3.connect(self.data_dir / "gumcp.sqlite3", timeout=WAIT_SECONDS)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(query, parameters)]

    @contextmanager
    def locked_database(self) -> Iterator[None]:
        """Hold the lock that keeps everybody else from reading and writing the host's database."""
        with closing(sqlite3.connect(self.data_dir / "gumcp.sqlite3", isolation_level=None)) as database:
            database.execute("PRAGMA busy_timeout=5000")
            database.execute("BEGIN EXCLUSIVE")
            yield
            database.execute("ROLLBACK")

    def terminate(self) -> int:
        """Ask the host to end as an operator would, and return its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """End the host as the out-of-memory killer would."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)


def has_ended(process: psutil.Process) -> bool:
    """Whether a process runs no more. One that its new parent has not collected yet (a zombie) has ended."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def workers_of(host: HostProcess) -> list[psutil.Process]:
    """Return the processes that serve below a supervisor."""
    found: list[psutil.Process] = []
    for child in psutil.Process(host.pid).children():
        # One that has ended, and is not collected yet, has no command line.
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child] if "--worker" in child.cmdline() else []
    return found


@contextmanager
def running_host(
    data_dir: Path,
    migrated_database: Path | None,
    *,
    asgi_server: str = "daphne",
    server_dirs: str | Path = PLAIN_SERVERS,
    metrics: bool = True,
    application: str = "gumcp_site.asgi:application",
    wrapper: tuple[str, ...] = (),
    health: int = 200,
    **settings: str,
) -> Iterator[HostProcess]:
    """Run a host with a database and ports of its own for the length of a `with` block.

    On leaving, the host must end at SIGTERM, with its child processes, its port, and nothing neglected in its log.
    `application` may be another one around the host's; `wrapper` is a command that runs what comes after it. The
    host is ready once its health has the status `health`.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    database = data_dir / "gumcp.sqlite3"
    if migrated_database is not None and not database.exists():
        shutil.copy(migrated_database, database)
    port, metrics_port = free_port(), free_port() if metrics else 0
    ports = {"GUMCP_PORT": str(port), "GUMCP_METRICS_PORT": str(metrics_port)}
    settings = {"GUMCP_SERVER_DIRS": str(server_dirs), **ports, **settings}
    arguments = (part.format(port=port, application=application) for part in HOST_COMMANDS[asgi_server])
    log = data_dir / f"log-{port}"
    with running(
        [*wrapper, sys.executable, *arguments],
        env=environment(data_dir, **settings),
        log=log,
        is_ready=lambda: exchange(port, "GET", "/health_check").status == health,
    ) as process:
        host = HostProcess(process, port, metrics_port, data_dir, log)
        yield host
        was_killed = process.poll() is not None
        children = [] if was_killed else psutil.Process(process.pid).children(recursive=True)
        host.terminate()
        until(lambda: all(has_ended(child) for child in children), ORPHAN_SECONDS)
        assert not is_listening(port), "something still listens on the host's port"
        assert not (signs := [line.group() for line in SIGNS_OF_NEGLECT.finditer(host.log())]), signs


@contextmanager
def fresh_host(**options: Any) -> Iterator[HostProcess]:
    """Run a host outside pytest, with a database of its own; options as of `running_host`."""
    with tempfile.TemporaryDirectory(prefix="gumcp-host-") as folder:
        migrate(Path(folder))
        with running_host(Path(folder), None, **options) as host:
            yield host
