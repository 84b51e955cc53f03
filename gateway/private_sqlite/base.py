"""The backend's entry point."""

import contextlib
import os
from typing import Any, Final

from django.db.backends.sqlite3 import base

PRIVATE: Final = 0o600
"""The mode of a new database file. It holds password hashes, and who used what."""


class DatabaseWrapper(base.DatabaseWrapper):
    """Creates the database file before SQLite does, which would leave its mode to the umask."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Connect. A file that was deleted is created again in the same way."""
        name = str(conn_params["database"])
        if not name.startswith("file:") and name != ":memory:":
            # If the file cannot be created, SQLite's own error says so.
            with contextlib.suppress(OSError):
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, PRIVATE))
        return super().get_new_connection(conn_params)
