"""The error of commands where the database is not migrated."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from django.db import DatabaseError

from gateway.management.shell import this_command
from gateway.records.migrations_check import is_migrated


@contextmanager
def needing_tables() -> Iterator[None]:
    """Turn the failure of a query into a message that says what to run, if the database is not migrated.

    Raises:
        CommandError: the database is not migrated.
        DatabaseError: the query failed for another reason.
    """
    try:
        yield
    except DatabaseError:
        if is_migrated():
            raise
        migrate = f"{this_command()} migrate"
        raise CommandError(
            f"The database lacks tables. Make them with `{migrate}`; `make run` does so when it starts."
        ) from None
