"""Keys for tests: rows in a host's database, as `manage.py create_key` makes them (which `test_commands` tests)."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from gateway.access.keys import make_key


@dataclass(frozen=True)
class IssuedKey:
    """A key and its row."""

    key: str = field(repr=False)
    user: str
    public: str
    id: int

    @property
    def session_key(self) -> str:
        """As it stands in a URL."""
        return f"{self.user}:{self.key}"

    @property
    def bearer(self) -> dict[str, str]:
        """As it stands in a header."""
        return {"Authorization": f"Bearer {self.key}"}


def issue(data_dir: Path, user: str, scope: object = None) -> IssuedKey:
    """Issue a key for `user`, who is made if there is none."""
    new = make_key()
    with closing(sqlite3.connect(data_dir / "gumcp.sqlite3", timeout=10)) as database, database:
        database.execute(
            "INSERT OR IGNORE INTO auth_user (username, password, is_active, is_staff, is_superuser, date_joined,"
            " first_name, last_name, email) VALUES (?, '!', 1, 0, 0, datetime('now'), '', '', '')",
            (user,),
        )
        row = database.execute(
            "INSERT INTO access_apikey (user_id, public, digest, label, scope, created_at)"
            " SELECT id, ?, ?, '', ?, datetime('now') FROM auth_user WHERE username = ?",
            (new.public, new.digest, None if scope is None else json.dumps(scope), user),
        )
        assert row.lastrowid is not None
        return IssuedKey(new.text, user, new.public, row.lastrowid)


def change_row(data_dir: Path, statement: str, *parameters: object) -> None:
    """Change rows as another process would, without telling the host."""
    with closing(sqlite3.connect(data_dir / "gumcp.sqlite3", timeout=10)) as database, database:
        database.execute(statement, parameters)


def revoke(data_dir: Path, key: IssuedKey) -> None:
    """Revoke `key`."""
    change_row(data_dir, "UPDATE access_apikey SET revoked_at = datetime('now') WHERE id = ?", key.id)


def expire(data_dir: Path, key: IssuedKey) -> None:
    """Let `key` have expired."""
    change_row(data_dir, "UPDATE access_apikey SET expires_at = '2020-01-01 00:00:00' WHERE id = ?", key.id)
