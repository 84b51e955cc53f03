"""Counts of limits that the processes of one machine share, in an SQLite file: `file:///path`.

The supervisor of several workers makes such a file, so that a key has its limit once and not once for each worker.
Several machines use Redis. A file that is lost costs the counts of the present windows and nothing else, so nothing is
ever forced to the disk.
"""

import contextlib
import sqlite3
import threading
import time
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from limits.storage import Storage

SCHEME: Final = "file"

WAIT_SECONDS: Final = 0.5
"""How long one process waits for another one to have counted."""

_TABLE: Final = "CREATE TABLE IF NOT EXISTS counts (key TEXT PRIMARY KEY, count INTEGER, ends REAL) WITHOUT ROWID"
_INDEX: Final = "CREATE INDEX IF NOT EXISTS counts_ends ON counts (ends)"
_COUNT: Final = """
    INSERT INTO counts VALUES (:key, :amount, :now + :expiry)
    ON CONFLICT (key) DO UPDATE SET
        count = CASE WHEN ends <= :now THEN :amount ELSE count + :amount END,
        ends = CASE WHEN ends <= :now THEN :now + :expiry ELSE ends END
    RETURNING count
"""


class _Connection(sqlite3.Connection):
    """A connection that is closed when its thread has ended."""

    def __del__(self) -> None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # the file could not be opened
            self.close()


class FileStorage(Storage):
    """A storage of the library `limits`. Each thread has a connection of its own."""

    STORAGE_SCHEME = [SCHEME]

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False, **options: Any) -> None:
        """`uri`: `file:///path/of/the/file`."""
        super().__init__(uri, wrap_exceptions, **options)
        self._path = unquote(urlsplit(uri or "").path)
        self._of_thread = threading.local()

    @property
    def base_exceptions(self) -> type[Exception]:
        """What the storage raises when it fails."""
        return sqlite3.Error

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count, and return the new count of the window, which begins if there is none."""
        values = {"key": key, "amount": amount, "expiry": expiry, "now": time.time()}
        with self._connection() as connection:
            ((count,),) = connection.execute(_COUNT, values).fetchall()
            if count == amount:
                connection.execute("DELETE FROM counts WHERE ends <= ?", (time.time(),))
        return int(count)

    def get(self, key: str) -> int:
        """The count of the present window."""
        return int(self._read(key)[0])

    def get_expiry(self, key: str) -> float:
        """When the present window ends (seconds since the epoch); now if there is none."""
        return float(self._read(key)[1])

    def check(self) -> bool:
        """Whether the file can be used."""
        try:
            self._read("")
        except sqlite3.Error:
            return False
        return True

    def reset(self) -> int | None:
        """Forget everything."""
        with self._connection() as connection:
            return connection.execute("DELETE FROM counts").rowcount

    def clear(self, key: str) -> None:
        """Forget one count."""
        with self._connection() as connection:
            connection.execute("DELETE FROM counts WHERE key = ?", (key,))

    def _read(self, key: str) -> tuple[int, float]:
        now = time.time()
        query = "SELECT count, ends FROM counts WHERE key = ? AND ends > ?"
        found: tuple[int, float] | None = self._connection().execute(query, (key, now)).fetchone()
        return found or (0, now)

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            # Another thread may collect what a thread leaves.
            connection = sqlite3.connect(self._path, timeout=WAIT_SECONDS, factory=_Connection, check_same_thread=False)
            _use_wal(connection)
            connection.execute("PRAGMA synchronous=OFF")
            with connection:
                connection.execute(_TABLE)
                connection.execute(_INDEX)
            self._of_thread.connection = connection
        return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Let readers and a writer not wait for each other.

    SQLite does not wait here, as it does elsewhere, while another connection does the same to a new file.
    """
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.005)
