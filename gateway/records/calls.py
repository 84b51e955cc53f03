"""Writes the rows of calls and refusals, and deletes those that are too old or too many.

Lives here: how these rows are written, many times as fast as by model objects. Not here: what is noted of a call
(`instances.call_log`).
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from django.db import DatabaseError, DataError, IntegrityError, connection
from django.utils import timezone

from gateway.access.key_search import without_keys
from gateway.conf import conf
from gateway.instances.call_log import Call, CallLog
from gateway.metrics import version_label
from gateway.records.models import CallRecord
from gateway.records.upkeep import LONGEST_RETENTION_DAYS
from gateway.storable import storable

logger = logging.getLogger(__name__)

BATCH_SIZE: Final = 250
"""Rows in one statement: few enough that no database refuses the number of parameters."""

MOMENTS_PER_SECOND: Final = 10
"""How exact the time of a row is."""

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
        # One statement for all: SQLite's `executemany` gives the interpreter's lock away and takes it again for each
        # row, which costs ten times as much while other threads work.
        values = [value for row in rows for value in row]
        if connection.vendor == "sqlite":
            # Django 5.2 would rewrite all placeholders each time, which takes as long as SQLite takes for the rows.
            connection.ensure_connection()
            with connection.wrap_database_errors:
                connection.connection.execute(_statement(len(rows), "?"), values)
        else:
            with connection.cursor() as cursor:
                cursor.execute(_statement(len(rows), "%s"), values)

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


@lru_cache(maxsize=BATCH_SIZE)
def _statement(rows: int, placeholder: str) -> str:
    quote = connection.ops.quote_name
    columns = ", ".join(quote(column) for column in _COLUMNS)
    places = ", ".join([f"({', '.join([placeholder] * len(_COLUMNS))})"] * rows)
    return f"INSERT INTO {quote(CallRecord._meta.db_table)} ({columns}) VALUES {places}"


def _row(call: Call) -> Row:
    conversation = call.conversation
    return (
        _moment(int(call.ended_at * MOMENTS_PER_SECOND)),
        _text(call.server_name, 100),
        _text(call.tool, 100),
        _text(call.user_id, 255),
        call.key,
        _session(conversation.session_id),
        _client(conversation.client_name, conversation.client_version),
        _version(conversation.protocol_version),
        conversation.transport,
        call.outcome,
        round(call.seconds * 1000, 3),
        call.size_bytes,
        _text(call.reason, 200),
        call.times,
    )


# The same few values come again and again, and each of these functions costs as much as the rest of a row.


@lru_cache(maxsize=64)
def _moment(tenths: int) -> Any:
    return connection.ops.adapt_datetimefield_value(datetime.fromtimestamp(tenths / MOMENTS_PER_SECOND, UTC))


@lru_cache(maxsize=4096)
def _session(session_id: UUID | None) -> Any:
    return session_id if session_id is None or connection.features.has_native_uuid_field else session_id.hex


@lru_cache(maxsize=4096)
def _text(text: str, length: int) -> str:
    return storable(without_keys(text), length)


@lru_cache(maxsize=1024)
def _client(name: str, version: str) -> str:
    return storable(without_keys(f"{name} {version}".strip()), 120)


@lru_cache(maxsize=64)
def _version(version: str) -> str:
    # The client may have invented it.
    return version and version_label(version)
