"""Threads that work with the database in the background, away from every request.

Lives here: the loop, how such a thread is woken and stopped, how an outage is logged, and when a thread opens a
database file anew. Not here: the work itself (`records.recorder`, `access.key_watch`).
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from django.db import DatabaseError, connection

from gateway.printable import Lines

STOP_TIMEOUT_SECONDS: Final = 3.0
"""How long `stop` waits for the last round of work."""


class DatabaseThread:
    """Calls `work` every `interval_seconds` in a thread of its own, until it is stopped.

    `work` is called with True for the last round, after `stop`. An error in `work` is passed to `on_error`, and the
    thread goes on with the next round.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[bool], object],
        on_error: Callable[[Exception], object],
        *,
        interval_seconds: float,
    ) -> None:
        self._name = name
        self._work = work
        self._on_error = on_error
        self._interval_seconds = interval_seconds
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Begin the next round now. May be called from any thread."""
        self._wake.set()

    def stop(self) -> None:
        """Run the last round and stop. Waits `STOP_TIMEOUT_SECONDS` at most; a second call does nothing."""
        if self._thread is not None:
            self._is_stopping = True
            self._wake.set()
            self._thread.join(STOP_TIMEOUT_SECONDS)
            self._thread = None

    def _run(self) -> None:
        while True:
            # In this order: a `stop` between the two lines is seen now, and one after them ends the wait below.
            self._wake.clear()
            is_last = self._is_stopping
            try:
                self._work(is_last)
            except Exception as error:
                self._on_error(error)
            if is_last:
                connection.close()
                return
            self._wake.wait(self._interval_seconds)


class FileRenewal:
    """Closes connections to a database file that are old; the next query opens another. May be used from any thread.

    While a file is open it can be read without an error, even if it was deleted or replaced.
    """

    def __init__(self, seconds: float) -> None:
        """`seconds`: how long a thread uses a connection."""
        self._seconds = seconds
        self._of_thread = threading.local()

    def renew(self) -> None:
        """Close this thread's connection if it leads to a file and is old."""
        if connection.vendor != "sqlite":
            return
        now = time.monotonic()
        if now - getattr(self._of_thread, "closed_at", float("-inf")) >= self._seconds:
            connection.close()
            self._of_thread.closed_at = now


class Outage:
    """Whether some work with the database fails at present. Its beginning and its end are each logged once."""

    def __init__(self, logger: logging.Logger, on_failure: str, on_recovery: str) -> None:
        """`on_failure` and `on_recovery` are the texts that are logged."""
        self._logger = logger
        self._on_failure = on_failure
        self._on_recovery = on_recovery
        self.is_present = False

    def begin(self, error: Exception) -> bool:
        """Note a failure. Returns whether it is the first one of this outage."""
        is_first = not self.is_present
        self.is_present = True
        if is_first:
            # Only the type: PostgreSQL's text contains the row's values.
            self._logger.warning("%s: %s", self._on_failure, type(error).__name__)
        return is_first

    def end(self) -> None:
        """Note that the work succeeded."""
        if self.is_present:
            self.is_present = False
            self._logger.info(self._on_recovery)


class DatabaseOutage(Outage):
    """An outage of the database. What fails for another reason is a bug, and the log says where it happened."""

    def begin(self, error: Exception) -> bool:
        """Note a failure. Returns whether it is the first one of this outage."""
        is_first = super().begin(error)
        if is_first and not isinstance(error, DatabaseError):
            self._logger.error("It happened in\n%s", Lines("".join(traceback.format_tb(error.__traceback__))))
        return is_first
