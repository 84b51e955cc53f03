"""Real host processes for tests: how one is started, watched and ended. Wire-level clients are in `wire`."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.support.wire import Answer, SseStream, exchange

ROOT: Final = Path(__file__).parents[2]
PLAIN_SERVERS: Final = ROOT / "tests" / "servers" / "plain"
BUNDLED_SERVERS: Final = ROOT / "servers"

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0
WAIT_SECONDS: Final = 10.0
"""How long anything may take that is expected to happen and has no time of its own."""

ASGI_SERVERS: Final = {
    "daphne": ("-m", "daphne", "-b", "127.0.0.1", "-p", "{port}", "{application}"),
    "uvicorn": ("-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}", "{application}"),
    "serve": ("manage.py", "serve", "--port", "{port}"),
    "reload": ("manage.py", "serve", "--reload", "--port", "{port}"),
}

SIGNS_OF_NEGLECT: Final = re.compile(
    r".*(?:was never retrieved|was never awaited|Task was destroyed|Exception in callback|Exception ignored"
    r"|took too long to shut down|SynchronousOnlyOperation).*"
)
"""What a log must never show, whatever a test did to its host."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def environment(data_dir: Path, **settings: str) -> dict[str, str]:
    """The environment of a host: nothing of the developer's own, a folder of its own, chosen `GUMCP_*` settings."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("GUMCP_", "DATABASE_", "DJANGO_"))
    }
    return {
        **kept,
        "GUMCP_ENV_FILE": "",
        "GUMCP_DATA_DIR": str(data_dir),
        "DATABASE_URL": f"sqlite:///{data_dir / 'gumcp.sqlite3'}",
        "GUMCP_METRICS_PORT": "0",
        # What a test leaves in flight must not hold up the next one.
        "GUMCP_SHUTDOWN_GRACE_SECONDS": "3",
        "GUMCP_SERVER_DIRS": str(PLAIN_SERVERS),
        "PYTHONUNBUFFERED": "1",
        **settings,
    }


def manage(*arguments: str, data_dir: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a management command to its end."""
    return run(sys.executable, "manage.py", *arguments, data_dir=data_dir, **settings)


def run(*command: str, data_dir: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command at the project's root, in a host's environment, to its end."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(data_dir, **settings),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


def until(condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """Return the first true value of `condition`, asked again and again."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not reached in {seconds} s"
        time.sleep(0.02)
    return value


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

    def terminate(self) -> int:
        """Ask the host to end as an operator would, and return its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """End the host as the out-of-memory killer would."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)


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
    **settings: str,
) -> Iterator[HostProcess]:
    """Start a host with a database and ports of its own; end it on leaving, and see that nothing stays behind.

    `application` may be another one around the host's; `wrapper` is a command that runs what comes after it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    database = data_dir / "gumcp.sqlite3"
    if migrated_database is not None and not database.exists():
        shutil.copy(migrated_database, database)
    port, metrics_port = free_port(), free_port() if metrics else 0
    settings = {"GUMCP_SERVER_DIRS": str(server_dirs), "GUMCP_METRICS_PORT": str(metrics_port), **settings}
    command = ASGI_SERVERS[asgi_server]
    log_path = data_dir / f"log-{port}"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*wrapper, sys.executable, *(part.format(port=port, application=application) for part in command)],
            cwd=ROOT,
            env=environment(data_dir, **settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    host = HostProcess(process, port, metrics_port, data_dir, log_path)
    try:
        _wait_until_healthy(host)
        yield host
        was_killed = process.poll() is not None
        children = [] if was_killed else psutil.Process(process.pid).children(recursive=True)
        host.terminate()
        assert not [child for child in children if child.is_running()], "child processes outlived their host"
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, "something still listens on the host's port"
        assert not (signs := [line.group() for line in SIGNS_OF_NEGLECT.finditer(host.log())]), signs
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(STOP_SECONDS)


def _wait_until_healthy(host: HostProcess) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert host.process.poll() is None, f"the host exited with {host.process.returncode}\n{host.log()}"
        try:
            if host.request("GET", "/health_check").status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"no health within {START_SECONDS} s\n{host.log()}")
