"""What commands say where the database has no tables, or old ones. Not here: making them (`manage.py migrate`)."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError
from django.db import DatabaseError

from gateway.management.shell import this_python
from gateway.records.migrations_check import is_migrated


@contextmanager
def needing_tables() -> Iterator[None]:
    """Have a command fail with what to run, if its queries fail because the database is not migrated.

    Raises:
        CommandError
    """
    try:
        yield
    except DatabaseError:
        if is_migrated():
            raise
        migrate = f"{this_python()} manage.py migrate"
        raise CommandError(
            f"The database lacks tables. Make them with `{migrate}`; `make run` does so when it starts."
        ) from None
