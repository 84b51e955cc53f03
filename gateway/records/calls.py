"""Writes the rows of calls and refusals, and deletes those that are too old or too many.

Lives here: how these rows are written, many times as fast as by model objects. Not here: what is noted of a call
(`instances.call_log`).
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db import DatabaseError, DataError, IntegrityError, connection, transaction
from django.utils import timezone

from gateway.conf import conf
from gateway.instances.call_log import Call, CallLog
from gateway.metrics import version_label
from gateway.records.models import CallRecord
from gateway.records.upkeep import LONGEST_RETENTION_DAYS
from gateway.storable import storable

logger = logging.getLogger(__name__)

BATCH_SIZE: Final = 2000
"""Rows in one transaction."""

DELETED_AT_ONCE: Final = 5000
"""How many rows are deleted in one statement."""

CHUNKS_OF_UPKEEP: Final = 20
"""How many such statements the regular upkeep makes at the most."""

_COLUMNS: Final = (
    "at",
    "server_name",
    "tool",
    "user_id",
    "key",
    "session",
    "client",
    "protocol_version",
    "transport",
    "outcome",
    "milliseconds",
    "size_bytes",
    "reason",
    "times",
)

Row = tuple[Any, ...]


class CallRows:
    """The rows of calls. Used in the recorder's thread."""

    def __init__(self, log: CallLog) -> None:
        self._log = log
        self._written = 0
        """How many rows were written since surplus rows were last deleted."""

    def write(self, *, is_last: bool) -> None:
        """Write what has ended. Raises `django.db.DatabaseError`; what was not written is written later."""
        calls = self._log.take(is_last=is_last)
        for start in range(0, len(calls), BATCH_SIZE):
            batch = calls[start : start + BATCH_SIZE]
            try:
                self._insert([_row(call) for call in batch])
            except (DataError, IntegrityError) as error:
                # Every text is storable, so this is not expected. The other rows must go on in any case.
                logger.warning("%d rows of calls cannot be written: %s", len(batch), type(error).__name__)
            except DatabaseError:
                self._log.put_back(calls[start:])
                raise
        self._written += len(calls)
        if self._written >= DELETED_AT_ONCE // 2:
            self._written = 0
            self.delete_surplus()

    def _insert(self, rows: Sequence[Row]) -> None:
        quote = connection.ops.quote_name
        columns = ", ".join(quote(column) for column in _COLUMNS)
        places = ", ".join(["%s"] * len(_COLUMNS))
        statement = f"INSERT INTO {quote(CallRecord._meta.db_table)} ({columns}) VALUES ({places})"
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.executemany(statement, rows)

    def delete_surplus(self, chunks: int = 1) -> None:
        """Delete the oldest rows if there are too many, or they are too old; so many chunks of them at the most."""
        oldest = timezone.now() - timedelta(days=min(conf.call_retention_days, LONGEST_RETENTION_DAYS))
        for _ in range(chunks):
            rows = CallRecord.objects.values_list("id", "at")
            first, last = rows.order_by("id").first(), rows.order_by("-id").first()
            if first is None or last is None:
                return
            # Rows are numbered as they come, so nothing has to be counted.
            (first_id, first_at), first_kept = first, last[0] - conf.max_call_rows + 1
            chunk = CallRecord.objects.filter(id__lt=first_id + DELETED_AT_ONCE)
            if first_id < first_kept:
                chunk.filter(id__lt=first_kept).delete()
            elif first_at < oldest:
                chunk.filter(at__lt=oldest).delete()
            else:
                return


def _row(call: Call) -> Row:
    at = datetime.fromtimestamp(call.ended_at, UTC)
    return (
        connection.ops.adapt_datetimefield_value(at),
        storable(call.server_name, 100),
        storable(call.tool, 100),
        storable(call.user_id, 255),
        call.key,
        None if call.session_id is None else _session(call),
        storable(f"{call.client_name} {call.client_version}".strip(), 120),
        # The client may have invented it.
        call.protocol_version and version_label(call.protocol_version),
        call.transport,
        call.outcome,
        round(call.seconds * 1000, 3),
        call.size_bytes,
        storable(call.reason, 200),
        call.times,
    )


def _session(call: Call) -> Any:
    assert call.session_id is not None
    return call.session_id if connection.features.has_native_uuid_field else call.session_id.hex
