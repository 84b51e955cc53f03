"""The embedded SQLite database, for commands that work on its file."""

from pathlib import Path

from django.core.management.base import CommandError
from django.db import connection


def require_embedded_database(otherwise: str) -> Path:
    """Return the file of the database.

    Raises:
        CommandError: the database is another one. The message ends with `otherwise`.
    """
    if connection.vendor != "sqlite":
        raise CommandError(f"The database is not the embedded SQLite but {connection.display_name}. {otherwise}")
    return Path(str(connection.settings_dict["NAME"]))
