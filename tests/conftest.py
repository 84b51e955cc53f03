"""What all tests share: a migrated database to copy, host processes, and folders of servers written on the spot."""

from __future__ import annotations

import fcntl
import gc
import json
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from tests.support import scheduling, version_1
from tests.support.host_process import HostProcess, StartHost, running_host
from tests.support.process_guard import ProcessGuard
from tests.support.processes import migrate
from tests.support.server_folders import SOUND_SERVER, WriteServer, write_main
from tests.support.threads import InThreads, run_in_threads_at_once

GUARD = pytest.StashKey[ProcessGuard]()
GROUPS_FOLDER = pytest.StashKey[Path]()
"""Where processes of pytest-xdist write which tests run together."""


@pytest.fixture(scope="session")
def processes() -> None:
    """Allow a test to start processes: marks it `e2e`, which `make quick` leaves out."""


@pytest.fixture(scope="session")
def migrated_database(processes: None, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """An SQLite file with all tables and no rows. Copy it; never open it."""
    base = tmp_path_factory.getbasetemp()
    # The folder above is shared by the processes that run tests. The first one makes the file.
    folder = (base if worker_id == "master" else base.parent) / "template"
    folder.mkdir(exist_ok=True)
    path = folder / "gumcp.sqlite3"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            migrate(folder)
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


@pytest.fixture(scope="module")
def answers_of_version_1(processes: None, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What mcp 1.28 answers to every step of every conversation of `tests.compat`."""
    return version_1.answers_of_version_1(tmp_path_factory.mktemp("version-1"))


@pytest.fixture(autouse=True)
def _closed_connections_of_threads() -> Iterator[None]:
    """Close the connections to the database that a test has opened in other threads.

    Django never closes a connection to a database in memory, and Python 3.13 warns of what is not closed.
    """
    opened: list[BaseDatabaseWrapper] = []

    def note(connection: BaseDatabaseWrapper, **_: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            opened.append(connection)

    connection_created.connect(note)
    yield
    connection_created.disconnect(note)
    for connection in opened:
        connection.inc_thread_sharing()
        BaseDatabaseWrapper.close(connection)
        connection.dec_thread_sharing()


@pytest.fixture
def in_threads_at_once() -> InThreads:
    """Repeat a step in several threads for half a second, and return what it raised."""
    return run_in_threads_at_once


@pytest.fixture
def write_server(tmp_path: Path) -> WriteServer:
    """Write `main.py` of a server, a sound one unless told otherwise, and return the directory of servers."""

    def write(name: str, source: str = SOUND_SERVER, directory: str = "servers") -> Path:
        return write_main(tmp_path / directory, name, source).parent

    return write


# -- Hooks -----------------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist starts processes by `python -c`. Code that looks for a file takes that for an interactive session.
    main = sys.modules["__main__"]
    if not hasattr(main, "__file__"):
        main.__file__ = pytest.__file__
    folder = tempfile.TemporaryDirectory(prefix="gumcp-groups-")
    config.add_cleanup(folder.cleanup)
    config.stash[GROUPS_FOLDER] = Path(folder.name)
    guard = config.stash[GUARD] = ProcessGuard()
    sys.addaudithook(guard)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    scheduling.import_own_share(session.config)


def pytest_itemcollected(item: pytest.Item) -> None:
    if "processes" in getattr(item, "fixturenames", ()):
        item.add_marker("e2e")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[scheduling.GROUPS] = scheduling.arrange(items)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    if worker := getattr(session.config, "workerinput", None):
        groups = json.dumps(session.config.stash[scheduling.GROUPS])
        Path(worker["groups_file"]).write_text(groups, encoding="utf-8")
    # Thousands of tests and what they import stay until the end. No collection of garbage needs to look at them again.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    # Each process has a file of its own, so that none reads what another one is writing.
    node.workerinput["groups_file"] = str(node.config.stash[GROUPS_FOLDER] / node.workerinput["workerid"])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return scheduling.GroupScheduling(config, log, config.stash[GROUPS_FOLDER] / "gw0")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    guard = item.config.stash[GUARD]
    guard.guarded_test = item.nodeid if item.get_closest_marker("e2e") is None else None
    try:
        return (yield)
    finally:
        guard.guarded_test = None


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, dict[str, Any], dict[str, Any]]:
    """Escape lone surrogates in reports: pytest-xdist sends reports as UTF-8, and tests log texts that are not."""
    report: dict[str, Any] = yield
    return _in_utf8(report)


def _in_utf8(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_in_utf8(key): _in_utf8(inner) for key, inner in value.items()}
        case list() | tuple():
            return type(value)(_in_utf8(inner) for inner in value)
        case _:
            return value
