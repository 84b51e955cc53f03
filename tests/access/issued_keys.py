"""Keys for tests: issued by the project's own command, in a host's database."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.host_process import manage


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


def issue(data_dir: Path, user: str, *options: str) -> IssuedKey:
    """Issue a key for `user`."""
    done = manage("create_key", user, "--json", *options, data_dir=data_dir)
    assert done.returncode == 0, done.stderr
    return IssuedKey(**json.loads(done.stdout))


def change_row(data_dir: Path, statement: str, *parameters: object) -> None:
    """Change rows as another process would, without telling the host."""
    with closing(sqlite3.connect(data_dir / "gumcp.sqlite3", timeout=10)) as database, database:
        database.execute(statement, parameters)


def revoke(data_dir: Path, key: IssuedKey) -> None:
    """Revoke `key`."""
    change_row(data_dir, "UPDATE gateway_apikey SET revoked_at = datetime('now') WHERE id = ?", key.id)


def expire(data_dir: Path, key: IssuedKey) -> None:
    """Let `key` have expired."""
    change_row(data_dir, "UPDATE gateway_apikey SET expires_at = '2020-01-01 00:00:00' WHERE id = ?", key.id)
