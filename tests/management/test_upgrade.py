"""A database of an older state: its tables are added, and what is in it stays.

There is no release before 2.0.0. The older state is the one before alerts, which have an app of their own.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.issued_keys import issue
from tests.support.processes import manage


@pytest.fixture
def older(migrated_database: Path, tmp_path: Path) -> Path:
    """The data folder of a host that has no tables for alerts."""
    folder = tmp_path / "older"
    folder.mkdir()
    shutil.copy(migrated_database, folder)
    with closing(sqlite3.connect(folder / migrated_database.name)) as database, database:
        for table in tables(database):
            database.execute(f"DROP TABLE {table}")
        database.execute("DELETE FROM django_migrations WHERE app = 'alerts'")
    return folder


def tables(database: sqlite3.Connection) -> list[str]:
    """The tables of alerts, those that refer to others first."""
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB 'alerts_*'")
    return sorted((name for (name,) in rows), key=lambda name: not name.endswith(("notice", "message")))


def keys(folder: Path) -> list[tuple[str, bytes]]:
    with closing(sqlite3.connect(folder / "gumcp.sqlite3")) as database:
        return database.execute("SELECT public, digest FROM access_apikey").fetchall()


def test_backup_of_an_older_state_is_restored_with_the_tables_that_it_lacked(older: Path, tmp_path: Path) -> None:
    issue(older, "ada")
    kept = keys(older)
    backup, elsewhere = tmp_path / "b.tar.gz", tmp_path / "elsewhere"
    elsewhere.mkdir()
    made = manage("backup", str(backup), data_dir=older)
    assert made.returncode == 0, made.stderr
    restored = manage("restore", str(backup), data_dir=elsewhere)
    assert restored.returncode == 0, restored.stderr
    assert keys(elsewhere) == kept
    with closing(sqlite3.connect(elsewhere / "gumcp.sqlite3")) as database:
        assert len(tables(database)) == 5
        assert database.execute("SELECT name FROM django_migrations WHERE app = 'alerts'").fetchall()


def test_database_of_an_older_state_is_upgraded_in_place(older: Path) -> None:
    issue(older, "ada")
    kept = keys(older)
    assert manage("migrate", "--check", data_dir=older).returncode == 1
    assert manage("migrate", data_dir=older).returncode == 0
    assert keys(older) == kept
