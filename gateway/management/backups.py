"""The file that `manage.py backup` writes and `manage.py restore` reads.

It is a gzipped tar with three members: `backup.json` (what it is, and checksums), `gumcp.sqlite3`, and `secret_key` if
the host made its own. The file has all password hashes and the secret key, so only its owner may read it.
"""

import contextlib
import gzip
import io
import json
import os
import sqlite3
import tarfile
from contextlib import closing
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Final

from django.db.migrations.loader import MigrationLoader
from django.utils import timezone

from gateway import __version__

FORMAT: Final = 1
DATABASE: Final = "gumcp.sqlite3"
SECRET_KEY: Final = "secret_key"  # noqa: S105 - the name of a file
FACTS: Final = "backup.json"

MAX_FACTS_BYTES: Final = 1024 * 1024
PRIVATE: Final = 0o600

TABLES: Final = {
    "users": "auth_user",
    "keys": "access_apikey",
    "servers": "records_serverrecord",
    "sessions": "records_sessionrecord",
    "audit events": "access_auditevent",
}
"""What is counted for the operator: words and tables."""


class BackupError(Exception):
    """A backup cannot be written or used. The message says why, in one sentence."""


@dataclass(frozen=True)
class Backup:
    """What a backup file has in it."""

    version: str
    """Of guMCP, which wrote it."""
    created_at: str
    """ISO 8601, UTC."""
    counts: dict[str, int]
    """Rows, by a word for what they are."""
    has_secret_key: bool

    @property
    def summary(self) -> str:
        counts = ", ".join(f"{count} {word}" for word, count in self.counts.items())
        key = "with the secret key" if self.has_secret_key else "without the secret key"
        return f"{counts}, {key}; written by gumcp {self.version} at {self.created_at}"


def write_backup(database: Path, secret_key: Path | None, target: Path) -> Backup:
    """Copy a database that may be in use, with its secret key, to the new file `target`.

    SQLite copies it as of one moment, the write-ahead log included. Writers go on meanwhile.

    Raises:
        BackupError: `target` exists or cannot be written, or the database is damaged.
    """
    if not database.is_file():
        raise BackupError(f"There is no database at {database}. Run `manage.py migrate` first.")
    if os.path.lexists(target):
        raise BackupError(f"{target} exists. Name a new file, or remove it first.")
    copy, draft = target.with_name(f".{target.name}.copy"), target.with_name(f".{target.name}.draft")
    try:
        for path in (copy, draft):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as destination:
            source.backup(destination)
        backup, facts = _examine(copy, secret_key)
        with draft.open("wb") as file, gzip.open(file, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as tar:
            _add(tar, FACTS, json.dumps(facts, indent=1).encode())
            tar.add(copy, DATABASE, filter=_private)
            if secret_key is not None:
                _add(tar, SECRET_KEY, secret_key.read_bytes())
        os.link(draft, target)  # fails if somebody else has made it meanwhile
    except FileExistsError as error:
        raise BackupError(
            f"{error.filename} exists: another backup is being written there, or was broken off."
        ) from None
    except (OSError, sqlite3.Error) as error:
        raise BackupError(f"The backup cannot be written: {_reason(error)}.") from None
    finally:
        for path in (copy, draft):
            path.unlink(missing_ok=True)
    return backup


def unpack(source: Path, folder: Path) -> Backup:
    """Check the backup `source` and write its database and secret key into `folder`, which must be private.

    Raises:
        BackupError: it is not a backup, is damaged, or was written by a newer version of guMCP.
    """
    try:
        with tarfile.open(source, "r:gz") as tar:
            facts = _read_facts(tar)
            for name in (DATABASE, SECRET_KEY):
                if name in facts["sha256"]:
                    _extract(tar, name, folder / name, facts["sha256"][name])
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, KeyError, RecursionError, TypeError, ValueError) as error:
        raise BackupError(f"{source} is not a whole backup of guMCP ({type(error).__name__}).") from None
    except OSError as error:
        raise BackupError(f"{source} cannot be unpacked: {_reason(error)}.") from None
    try:
        backup, _ = _examine(folder / DATABASE, folder / SECRET_KEY if SECRET_KEY in facts["sha256"] else None)
    except sqlite3.Error as error:
        raise BackupError(f"The database in {source} is damaged: {error}.") from None
    _require_known_migrations(folder / DATABASE, facts["gumcp"])
    return Backup(str(facts["gumcp"]), str(facts["created_at"]), backup.counts, backup.has_secret_key)


def _examine(database: Path, secret_key: Path | None) -> tuple[Backup, dict[str, Any]]:
    with closing(sqlite3.connect(database)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            raise BackupError(f"The database is damaged: {verdict}")
        counts = {}
        for word, table in TABLES.items():
            # Fixed names, and a table that an older version did not have counts nothing.
            with contextlib.suppress(sqlite3.OperationalError):
                (counts[word],) = connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
    now = timezone.now().isoformat(timespec="seconds")
    with database.open("rb") as file:
        digests = {DATABASE: file_digest(file, "sha256").hexdigest()}
    if secret_key is not None:
        digests[SECRET_KEY] = sha256(secret_key.read_bytes()).hexdigest()
    facts = {"format": FORMAT, "gumcp": __version__, "created_at": now, "sha256": digests}
    return Backup(__version__, now, counts, secret_key is not None), facts


def _read_facts(tar: tarfile.TarFile) -> dict[str, Any]:
    member = tar.next()
    if member is None or member.name != FACTS or not member.isfile() or member.size > MAX_FACTS_BYTES:
        raise ValueError(FACTS)
    file = tar.extractfile(member)
    assert file is not None
    facts = json.loads(file.read())
    if facts["format"] != FORMAT:
        raise BackupError(f"The backup has the format {facts['format']}, which this version of gumcp does not know.")
    if DATABASE not in facts["sha256"]:
        raise ValueError(DATABASE)
    return dict(facts)


def _extract(tar: tarfile.TarFile, name: str, target: Path, digest: str) -> None:
    member = tar.getmember(name)
    file = tar.extractfile(member) if member.isfile() else None
    if file is None:
        raise ValueError(name)
    with open(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, PRIVATE), "r+b") as output:
        while chunk := file.read(1024 * 1024):
            output.write(chunk)
        output.seek(0)
        if file_digest(output, "sha256").hexdigest() != digest:
            raise ValueError(name)


def _require_known_migrations(database: Path, version: object) -> None:
    with closing(sqlite3.connect(database)) as connection:
        try:
            applied = connection.execute("SELECT app, name FROM django_migrations").fetchall()
        except sqlite3.OperationalError:
            raise BackupError("The database in the backup has never been migrated.") from None
    known = MigrationLoader(None).disk_migrations
    apps = {app for app, _ in known}
    if any(app in apps and (app, name) not in known for app, name in applied):
        raise BackupError(f"The backup was written by gumcp {version}, whose tables are newer. Install that version.")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), PRIVATE
    tar.addfile(member, io.BytesIO(content))


def _private(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mode, member.uid, member.gid, member.uname, member.gname = PRIVATE, 0, 0, "", ""
    return member


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
