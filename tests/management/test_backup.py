"""`manage.py backup` and `restore`: what is in the file comes back, and no other file does harm."""

from __future__ import annotations

import gzip
import io
import json
import os
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from gateway.management import backups
from gateway.management.backups import BackupError, unpack, write_backup
from tests.support.host_process import StartHost
from tests.support.processes import manage


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "gumcp.sqlite3"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE django_migrations (app TEXT, name TEXT)")
        connection.execute("INSERT INTO django_migrations VALUES ('records', '0001_initial')")
        connection.execute("CREATE TABLE auth_user (name TEXT)")
        connection.execute("INSERT INTO auth_user VALUES ('ada')")
        connection.commit()
    return path


@pytest.fixture
def key(database: Path) -> Path:
    path = database.with_name("secret_key")
    path.write_text("s3cret")
    return path


def rewrite(backup: Path, **members: bytes | None) -> None:
    """Replace members of a backup; None leaves one out."""
    with tarfile.open(backup) as tar:
        old = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    new = old | {name.replace("_", "."): content for name, content in members.items()}
    with tarfile.open(backup, "w:gz") as tar:
        for name, content in new.items():
            if content is not None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_backup_of_a_database_in_use_has_what_is_committed(database: Path, key: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(database)) as writer:
        writer.execute("INSERT INTO auth_user VALUES ('brin')")
        writer.commit()  # in the write-ahead log only
        writer.execute("INSERT INTO auth_user VALUES ('never committed')")
        written = write_backup(database, key, tmp_path / "b.tar.gz")
    assert written.counts["users"] == 2
    target = tmp_path / "unpacked"
    target.mkdir()
    backup = unpack(tmp_path / "b.tar.gz", target)
    assert (backup.counts, backup.has_secret_key) == (written.counts, True)
    assert (target / "secret_key").read_text() == "s3cret"
    for path in (tmp_path / "b.tar.gz", target / "gumcp.sqlite3", target / "secret_key"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["b.tar.gz", "data", "unpacked"]


def test_existing_file_is_not_overwritten(database: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.tar.gz"
    target.write_text("mine")
    with pytest.raises(BackupError, match="exists"):
        write_backup(database, None, target)
    assert target.read_text() == "mine"


def test_target_that_cannot_be_written_is_named(database: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="No such file or directory"):
        write_backup(database, None, tmp_path / "nowhere" / "b.tar.gz")


def test_missing_database_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="no database"):
        write_backup(tmp_path / "none.sqlite3", None, tmp_path / "b.tar.gz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(b"no archive"), "not a whole backup"),
        (lambda path: path.write_bytes(gzip.compress(b"no tar")), "not a whole backup"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "not a whole backup"),
        (lambda path: rewrite(path, gumcp_sqlite3=b"another"), "not a whole backup"),
        (lambda path: rewrite(path, gumcp_sqlite3=None), "not a whole backup"),
        (lambda path: rewrite(path, backup_json=b"{}"), "not a whole backup"),
        (lambda path: rewrite(path, backup_json=b"[]"), "not a whole backup"),
        (lambda path: rewrite(path, backup_json=b"[" * 100_000), "not a whole backup"),
        (lambda path: rewrite(path, backup_json=json.dumps({"format": 9}).encode()), "format 9"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_file_that_is_not_a_whole_backup_is_refused(damage, says, database: Path, key: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path, target = tmp_path / "b.tar.gz", tmp_path / "unpacked"
    target.mkdir()
    write_backup(database, key, path)
    damage(path)
    with pytest.raises(BackupError, match=says):
        unpack(path, target)


def test_member_with_another_path_is_not_unpacked(database: Path, tmp_path: Path) -> None:
    path, target = tmp_path / "b.tar.gz", tmp_path / "unpacked"
    target.mkdir()
    write_backup(database, None, path)
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w:gz") as tar:
        for member, content in [*members, (tarfile.TarInfo("../outside"), b"x")]:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    unpack(path, target)
    assert [entry.name for entry in target.iterdir()] == ["gumcp.sqlite3"]
    assert not (tmp_path / "outside").exists()


def test_backup_of_a_newer_version_is_refused(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("INSERT INTO django_migrations VALUES ('records', '0099_of_tomorrow')")
        connection.commit()
    monkeypatch.setattr(backups, "__version__", "9.1.0")
    write_backup(database, None, tmp_path / "b.tar.gz")
    target = tmp_path / "unpacked"
    target.mkdir()
    with pytest.raises(BackupError, match=r"gumcp 9\.1\.0"):
        unpack(tmp_path / "b.tar.gz", target)


def test_key_works_on_another_host_after_backup_under_load_and_restore(start_host: StartHost, tmp_path: Path) -> None:
    file, elsewhere = tmp_path / "b.tar.gz", tmp_path / "elsewhere"
    with start_host(GUMCP_AUTH="keys") as host:
        key = manage("create_key", "ada", data_dir=host.data_dir).stdout.strip()
        with host.session("workshop", f"ada:{key}"):
            done = manage("backup", str(file), data_dir=host.data_dir)
        assert done.returncode == 0, done.stderr
        refused = manage("restore", str(file), "--replace", data_dir=host.data_dir)
        assert "A host runs with this database" in refused.stderr
    elsewhere.mkdir()
    done = manage("restore", str(file), data_dir=elsewhere)
    assert done.returncode == 0, done.stderr
    assert key not in done.stdout + done.stderr
    assert (elsewhere / "secret_key").read_bytes() == (host.data_dir / "secret_key").read_bytes()
    again = manage("restore", str(file), data_dir=elsewhere)
    assert "Use --replace" in again.stderr
    with start_host(data_dir=elsewhere, GUMCP_AUTH="keys") as restored:
        with restored.session("workshop", f"ada:{key}") as stream:
            stream.call("echo", text="x")
        assert restored.rows("SELECT COUNT(*) AS n FROM access_apikey") == [{"n": 1}]
