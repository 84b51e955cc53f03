"""Writes rows in batches, and leaves out the rows whose values the database does not accept.

Not here: which rows there are to write (`recorder`).
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from django.db import DataError, IntegrityError
from django.db.models import Model

from gateway.storable import make_storable

logger = logging.getLogger(__name__)

BATCH_SIZE: Final = 500
"""Rows in one statement."""

_ERRORS_OF_ROWS: Final = (DataError, IntegrityError, ValueError, TypeError, OverflowError)
"""Errors that the values of one row can cause. Any other error means that the database cannot be used."""


class RowWriter:
    """Inserts and updates rows. Used in the recorder's thread only."""

    def __init__(self) -> None:
        self._refused: set[object] = set()
        """Rows that the database did not accept, by their unique value. They are not tried again until `retry`."""
        self.trusts_foreign_keys = False
        """Whether the row that other rows point to is known to be there: see `_raise_if_rows_are_missing`."""

    def upsert(self, rows: Sequence[Model], unique_field: str, updated_fields: list[str]) -> None:
        """Write rows of one model; if a batch is refused, write its rows one by one.

        Raises `django.db.DatabaseError` if the database cannot be used.
        """
        for row in rows:
            make_storable(row)
        if self._refused:
            rows = [row for row in rows if getattr(row, unique_field) not in self._refused]
        if not rows:
            return
        write = partial(
            type(rows[0])._default_manager.bulk_create,
            batch_size=BATCH_SIZE,
            update_conflicts=True,
            unique_fields=[unique_field],
            update_fields=updated_fields,
        )
        try:
            write(rows)
            return
        except _ERRORS_OF_ROWS as error:
            self._raise_if_rows_are_missing(error)
        for row in rows:
            unique_value = getattr(row, unique_field)
            with self.skipping_refused(f"{row._meta.verbose_name} {unique_value}"):
                write([row])
                continue
            self._refused.add(unique_value)

    @contextmanager
    def skipping_refused(self, what: str) -> Iterator[None]:
        """Go on if the database refuses the values that the block writes. `what` names the row in the log."""
        try:
            yield
        except _ERRORS_OF_ROWS as error:
            self._raise_if_rows_are_missing(error)
            # Only the type: PostgreSQL's text contains the row's values.
            logger.warning("The row of %s is left out, it cannot be written: %s", what, type(error).__name__)

    def retry_refused(self) -> None:
        """Try the refused rows again from now on."""
        self._refused.clear()

    def _raise_if_rows_are_missing(self, error: Exception) -> None:
        """Raise `error` if the cause may be that the process's own row is missing, as in a database that was replaced.

        After such a failure everything is written again, that row first. If it fails even then, the row itself is at
        fault.
        """
        if isinstance(error, IntegrityError) and not self.trusts_foreign_keys:
            raise error
