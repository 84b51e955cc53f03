"""Whether the database has the tables that this version of the code needs."""

from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor


class UnappliedMigrations(DatabaseError):
    """The database lacks tables, or has those of an older version."""

    def __init__(self) -> None:
        super().__init__("The database is not migrated: it lacks tables or columns. Run `manage.py migrate`.")


def is_migrated() -> bool:
    """Whether every migration has been applied. Reads the database."""
    executor = MigrationExecutor(connection)
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())
