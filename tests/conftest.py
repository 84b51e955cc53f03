"""What all tests share: a migrated database to copy, host processes, and folders of servers written on the spot."""

from __future__ import annotations

import sqlite3
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.host_process import HostProcess, manage, running_host

StartHost = Callable[..., Any]
WriteServer = Callable[..., Path]
InThreads = Callable[[Callable[[], object]], list[Exception]]

SOUND_SERVER = """
    from mcp.server import Server

    def server(user_id, api_key=None):
        return Server("sound")

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with all tables and no rows. Copy it; never open it."""
    folder = tmp_path_factory.mktemp("template")
    done = manage("migrate", "--verbosity", "0", data_dir=folder)
    assert done.returncode == 0, done.stderr
    path = folder / "gumcp.sqlite3"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture(scope="session")
def start_host(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> StartHost:
    """Start a host process for the length of a `with` block; options as of `running_host`."""

    @contextmanager
    def start(data_dir: Path | None = None, **options: Any) -> Iterator[HostProcess]:
        with running_host(data_dir or tmp_path_factory.mktemp("host"), migrated_database, **options) as host:
            yield host

    return start


@pytest.fixture(scope="module")
def host(start_host: StartHost, request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    """A host on Daphne with the fixture servers, shared by the tests of a module.

    A module asks for other settings with a constant `HOST_OPTIONS`.
    """
    with start_host(**getattr(request.module, "HOST_OPTIONS", {})) as host:
        yield host


@pytest.fixture
def in_threads_at_once() -> Iterator[InThreads]:
    """Do something in several threads for half a second, and return what it raised.

    They take turns as often as they can, so that what goes wrong between two of their steps does so soon.
    """
    interval = sys.getswitchinterval()

    def do(step: Callable[[], object]) -> list[Exception]:
        failures: list[Exception] = []
        is_over = threading.Event()

        def repeat() -> None:
            try:
                while not is_over.is_set():
                    step()
            except Exception as error:
                failures.append(error)
                is_over.set()

        threads = [threading.Thread(target=repeat) for _ in range(4)]
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        is_over.wait(0.5)
        is_over.set()
        for thread in threads:
            thread.join()
        return failures

    yield do
    sys.setswitchinterval(interval)


@pytest.fixture
def write_server(tmp_path: Path) -> WriteServer:
    """Write `main.py` of a server, a sound one unless told otherwise, and return the directory of servers."""

    def write(name: str, source: str = SOUND_SERVER, directory: str = "servers") -> Path:
        folder = tmp_path / directory / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "main.py").write_text(textwrap.dedent(source))
        return folder.parent

    return write
