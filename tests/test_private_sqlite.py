"""The mode of the database's files, whatever the folder and the umask."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.private_sqlite.base import DatabaseWrapper

pytestmark = pytest.mark.django_db  # without it no database may be opened

OPTIONS = {"init_command": "PRAGMA journal_mode=WAL;"}


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def connect(path: Path | str) -> DatabaseWrapper:
    settings: dict[str, Any] = {"NAME": str(path), "OPTIONS": OPTIONS, "TIME_ZONE": None, "CONN_MAX_AGE": 0}
    return DatabaseWrapper({**settings, "CONN_HEALTH_CHECKS": False, "AUTOCOMMIT": True, "ATOMIC_REQUESTS": False})


def modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


@pytest.mark.usefixtures("open_umask")
def test_new_database_is_its_owners_alone_also_when_it_was_deleted(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "gumcp.sqlite3"
    for _ in range(2):
        connection = connect(path)
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept (value)")
            assert modes(tmp_path) == {path.name: 0o600, f"{path.name}-wal": 0o600, f"{path.name}-shm": 0o600}
        for file in tmp_path.iterdir():
            file.unlink()
        connection.close()


def test_database_in_memory_makes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (":memory:", "file:memorydb_test?mode=memory&cache=shared"):
        connection = connect(name)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        connection.connection.close()  # Django keeps one in memory open
    assert modes(tmp_path) == {}


def test_folder_that_does_not_exist_is_sqlites_own_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="unable to open database file"):
        connect(tmp_path / "nowhere" / "gumcp.sqlite3").ensure_connection()
