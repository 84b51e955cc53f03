"""The part of the host that watches for alerts: what it sees, which process is the lead, and the rounds of its work.

Threads: `keep_up` is called on the host's loop, where it looks at what is in memory. Rows are read and written in a
thread of its own. Messages are sent in threads of the `sender`. A database that hangs delays the rounds and nothing
else: `keep_up` notices it, and tells the destinations without the database.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from django.db import connection

from gateway.alerts import outbox, register
from gateway.alerts.delivery import Outgoing
from gateway.alerts.models import AlertDestination, ProcessTroubles
from gateway.alerts.outage import OutageTelling
from gateway.alerts.register import Register
from gateway.alerts.sender import Sender
from gateway.alerts.troubles import Condition, Troubles, conditions_of
from gateway.conf import conf
from gateway.database_thread import DatabaseOutage, DatabaseThread, FileRenewal
from gateway.records.models import HostProcess

logger = logging.getLogger(__name__)

ROUND_SECONDS: Final = 1.0
"""How often rows are looked at."""

KEYS_SECONDS: Final = 30.0
"""How often the lead looks for keys that expire soon."""

REPORT_SECONDS: Final = 30.0
"""How often a process writes what is wrong with it, even if that has not changed."""

UPKEEP_SECONDS: Final = 600.0
"""How often the lead deletes old rows."""

RECONNECT_SECONDS: Final = 30.0
"""How long a connection to a file is used."""


class AlertWatch:
    """Watches for alerts in one process."""

    def __init__(
        self,
        process_id: UUID,
        look: Callable[[], Troubles],
        processes: Callable[[], Sequence[HostProcess]],
        sender: Sender | None = None,
    ) -> None:
        """`look`: what is wrong in this process now. `processes`: the rows of those that are alive, as last read."""
        self._process_id = process_id
        self._look = look
        self._processes = processes
        self._sender = sender or Sender()
        self._lock = threading.Lock()
        self._troubles = Troubles()
        self._results: list[tuple[Outgoing, str]] = []
        self._is_lead = False
        self._last_round: float | None = None
        """When the rows were last seen to (monotonic seconds); None before the first time."""
        self._outage_telling = OutageTelling(self._sender)
        # From here on: used in the thread only.
        self._written_troubles: Troubles | None = None
        self._register = Register()
        self._keys: list[Condition] = []
        self._last_keys = self._last_upkeep = self._last_report = float("-inf")
        self._file_renewal = FileRenewal(RECONNECT_SECONDS)
        self._outage = DatabaseOutage(logger, "Alerts cannot look at the database", "Alerts look at the database again")
        self._thread = DatabaseThread("alerts", self.run_round, self._note_failure, interval_seconds=ROUND_SECONDS)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Note the results of attempts and stop. Blocks for a moment: do not call it on an event loop."""
        self._thread.stop()

    def keep_up(self) -> None:
        """Look at what is in memory. Call it once a second on the host's loop."""
        troubles = self._look()
        with self._lock:
            self._troubles = troubles
            last_round, is_lead = self._last_round, self._is_lead
        self._sender.keep_up()
        if not (troubles.database and is_lead) or last_round is None:
            return
        if time.monotonic() - last_round > max(conf.alert_after_seconds, 2 * ROUND_SECONDS):
            self._outage_telling.tell(troubles.database)

    # -- In the thread -----------------------------------------------------------------------------------------------

    def run_round(self, is_last: bool = False) -> None:
        """Read and write rows once. Raises `django.db.DatabaseError`."""
        processes = self._processes()
        if not processes:
            return  # the process has no row yet: the database may lack tables
        self._file_renewal.renew()
        self._write_results()
        if is_last:
            return
        self._report()
        self._outage_telling.end(self._register)
        alive = [process.id for process in processes]
        serving = [process for process in processes if not process.is_draining]
        lead = min(serving, key=lambda process: (process.started_at, str(process.id)), default=None)
        is_lead = lead is not None and lead.id == self._process_id
        if is_lead:
            self._run_lead_round(alive, time.monotonic())
        with self._lock:
            self._is_lead, self._last_round = is_lead, time.monotonic()
        self._outage.end()

    def _run_lead_round(self, alive: Sequence[UUID], now: float) -> None:
        if now - self._last_keys >= KEYS_SECONDS:
            self._keys = register.expiring_keys()
            self._last_keys = now
        reported = ProcessTroubles.objects.filter(process_id__in=alive).values_list("troubles", flat=True)
        conditions = conditions_of(map(Troubles.from_json, reported), many_refusals=conf.alert_refusals_per_minute)
        self._register.update([*conditions, *self._keys], now)
        destinations = list(AlertDestination.objects.filter(is_enabled=True))
        self._outage_telling.learn(destinations)
        if destinations:
            outbox.write_messages(destinations)
            for message in outbox.take_due(self._sender.busy, self._sender.room):
                self._sender.start(message, self._note_result)
        if now - self._last_upkeep >= UPKEEP_SECONDS:
            register.delete_old_rows()
            # What processes said that are gone.
            ProcessTroubles.objects.exclude(process_id__in=alive).delete()
            self._last_upkeep = now

    def _report(self) -> None:
        with self._lock:
            troubles = self._troubles
        now = time.monotonic()
        # Now and then in any case: a process that was slow may have been taken for one that is gone.
        if troubles != self._written_troubles or now - self._last_report >= REPORT_SECONDS:
            ProcessTroubles.objects.update_or_create(
                process_id=self._process_id, defaults={"troubles": troubles.to_json()}
            )
            self._written_troubles, self._last_report = troubles, now

    def _note_result(self, message: Outgoing, error: str) -> None:
        with self._lock:
            self._results.append((message, error))
        self._thread.wake()

    def _write_results(self) -> None:
        with self._lock:
            results = list(self._results)
        for result in results:
            outbox.note_result(*result)
            with self._lock:
                self._results.remove(result)

    def _note_failure(self, error: Exception) -> None:
        self._outage.begin(error)
        self._written_troubles = None
        connection.close()
