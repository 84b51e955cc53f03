"""Whether the database is well, judged by how its writer fares. Everything comes from memory."""

import time
from typing import TYPE_CHECKING, Final

from gateway.records.models import FLUSH_SECONDS

if TYPE_CHECKING:  # Django's pages are checked without the SDK, which this imports
    from gateway.records.recorder import Recorder

DATABASE_LATE_SECONDS: Final = 3 * FLUSH_SECONDS + 5
"""How old the last write may be: a writer waits 5 s for SQLite's lock before it is told that there is none."""


def is_database_late(recorder: "Recorder") -> bool:
    """Whether rows are not written in time."""
    last = recorder.last_flush
    return last is None or time.monotonic() - last > DATABASE_LATE_SECONDS or bool(recorder.last_error)


def database_state(recorder: "Recorder") -> str:
    """What is wrong with the database, as a part of a sentence; empty if nothing is."""
    if recorder.lacks_migrations:
        return "the database is not migrated"
    if not is_database_late(recorder):
        return ""
    if recorder.last_flush is None:
        since = "have not been written yet"
    else:
        since = f"have not been written for {time.monotonic() - recorder.last_flush:.0f} s"
    return f"rows {since}{f' ({recorder.last_error})' if recorder.last_error else ''}, so lists and history are late"
