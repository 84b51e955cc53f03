"""What commands say where the database has no tables, or old ones. Not here: making them (`manage.py migrate`)."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from gateway.management.shell import this_python


@contextmanager
def needing_tables() -> Iterator[None]:
    """Have a command fail with what to run, if its queries fail because the database is not migrated.

    Raises:
        CommandError
    """
    try:
        yield
    except DatabaseError:
        if _is_migrated():
            raise
        migrate = f"{this_python()} manage.py migrate"
        raise CommandError(
            f"The database lacks tables. Make them with `{migrate}`; `make run` does so when it starts."
        ) from None


def _is_migrated() -> bool:
    executor = MigrationExecutor(connection)
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())
