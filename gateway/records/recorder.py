"""Writes facts about this process's servers, sessions and instances into rows, for operators to see.

Lives here: which facts are written and when. One thread writes them in batches, away from every request. A slow, locked
or missing database delays the rows and nothing else: what could not be written is written later. Each round first reads
what operators asked for (`operator_requests`), whether or not rows can be written. Not here: how a batch is written
(`row_writer`), rows of other processes and old rows (`upkeep`).
"""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone

from gateway import __version__, metrics, signals
from gateway.access.identity import Identity
from gateway.catalog.registry import Registry
from gateway.conf import conf
from gateway.database_thread import DatabaseOutage, DatabaseThread
from gateway.instances.call_log import CallLog
from gateway.instances.instance import Instance
from gateway.instances.listings import Listing, Listings
from gateway.process_memory import resident_bytes
from gateway.records.calls import CHUNKS_OF_UPKEEP, CallRows
from gateway.records.history import History
from gateway.records.migrations_check import UnappliedMigrations, is_migrated
from gateway.records.models import (
    FLUSH_SECONDS,
    HEARTBEAT_SECONDS,
    STATELESS,
    HostProcess,
    InstanceRecord,
    ServerRecord,
    SessionRecord,
)
from gateway.records.operator_requests import OperatorRequests
from gateway.records.processes import (
    LoadMeter,
    Place,
    conditions_of_servers,
    running_hosts,
)
from gateway.records.row_writer import BATCH_SIZE, RowWriter
from gateway.records.upkeep import (
    close_rows_of_dead_processes,
    delete_old_rows,
    delete_surplus_rows,
    delete_surplus_rows_of,
    hostname,
    processes_alive,
)
from gateway.storable import storable
from gateway.transports.sessions import GOES_ON, Session, Sessions

logger = logging.getLogger(__name__)

UPKEEP_SECONDS: Final = 600.0
"""How often old rows are deleted."""

SURPLUS_PARTS: Final = 10
"""Surplus rows are deleted each time a tenth of the rows that are kept has been added."""

MANY_ROWS: Final = 100_000
"""Stands for the number of rows that are kept if there is no limit."""

MAX_KEPT_CLOSED_SESSIONS: Final = 50_000
"""How many ended sessions are kept in memory while the database is away; beyond it the oldest are dropped."""

CLIENT_ROW_SECONDS: Final = 5.0
"""How often the row of a stateless client is written while it sends requests: it costs as much as its instance's."""

MAX_LISTED_NAME_LENGTH: Final = 1000
"""Longest name of a tool, URI of a resource or name of a prompt that is kept."""

_UPDATED_SESSION_FIELDS: Final = [
    "process",
    "client_name",
    "client_version",
    "protocol_version",
    "last_activity_at",
    "closed_at",
    "messages_in",
    "messages_out",
    "calls",
    "state",
    "end_reason",
]


class Recorder:
    """Writes the rows of one process.

    Threads: signals arrive on the host's loop, rows are written in a thread of its own. What both use is guarded by
    `_lock`.
    """

    def __init__(
        self,
        registry: Registry,
        sessions: Sessions,
        instances: Iterable[Instance],
        listings: Listings,
        call_log: CallLog | None = None,
        place: Place | None = None,
    ) -> None:
        """`call_log`: the calls to write."""
        self._call_log = call_log or CallLog(keeps_calls=False)
        self.history = History(self._call_log, sessions)
        """What this process did lately."""
        self.processes: list[HostProcess] = []
        """The rows of the processes that are alive, as last read, this one included."""
        self._registry = registry
        self._sessions = sessions
        self._instances = instances
        self._listings = listings
        self._place = place or Place()
        self.process_id = uuid4()
        """The primary key of the process's row."""
        self._started_at = timezone.now()
        self.operator_requests = OperatorRequests(registry, since=self._started_at)
        """What operators asked for, as last read."""
        self.has_tried = threading.Event()
        """Set once operators' requests have been read for the first time, or could not be read."""
        self.last_flush: float | None = None
        """When all rows were last up to date (monotonic seconds); None before the first time."""
        self.last_error = ""
        """The type of the error that keeps rows from being written now. No text: it could hold what a client sent."""
        self.lacks_migrations = False
        """Whether the database was found without the tables that this version needs. Looked at until it has them."""
        self._lock = threading.Lock()
        self._closed: dict[UUID, tuple[Session, datetime]] = {}
        self._unwritten_listings: dict[str, Listing] = {}
        self._conditions: dict[str, str] = {}
        self._is_draining = False
        self._carried_out_look: datetime | None = None
        # From here on: used in the thread only.
        self._writer = RowWriter()
        self._call_rows = CallRows(self._call_log)
        self._written_activity: dict[Session, float] = {}
        self._load = LoadMeter()
        self._written_conditions: dict[str, str] | None = None
        self._shown_conditions: dict[str, str] | None = None
        self._written_draining = False
        self._written_revision = -1
        self._written_look: datetime | None = None
        self._instance_rows: dict[UUID, str] = {}
        """Rows of instances that are not marked as ended -> their users."""
        self._written_requests: dict[Instance, int] = {}
        """Instances -> how many stateless requests their rows say."""
        self._unwritten_clients: set[Instance] = set()
        """Instances with stateless requests that the rows of their clients do not say yet."""
        self._client_rows_written_at: dict[UUID, float] = {}
        """Rows of stateless clients -> when they were last written (monotonic seconds)."""
        self._new_ended_rows: Counter[str] = Counter()
        """Users -> how many rows of theirs have ended since surplus rows of theirs were last deleted."""
        self._last_heartbeat = self._last_beat = self._last_upkeep = float("-inf")
        self._is_migrated = False
        self._outage = DatabaseOutage(
            logger,
            "Rows cannot be written, the admin shows old facts until they can",
            "Rows are being written again",
        )
        self._thread = DatabaseThread("recorder", self._run_round, self._note_failure, interval_seconds=FLUSH_SECONDS)

    def start(self) -> None:
        """Start to listen and to write."""
        signals.session_closed.connect(self._on_session_closed)
        signals.listing_learned.connect(self._on_listing_learned)
        self._call_log.start()
        self._thread.start()

    def stop(self) -> None:
        """Write what is left and stop. Blocks for a moment: do not call it on an event loop."""
        self._thread.stop()
        signals.session_closed.disconnect(self._on_session_closed)
        signals.listing_learned.disconnect(self._on_listing_learned)
        self._call_log.stop()

    def note_conditions(self, conditions: dict[str, str]) -> None:
        """Show operators what is wrong with which server at the moment: server name -> text."""
        with self._lock:
            self._conditions = conditions

    @property
    def conditions(self) -> dict[str, str]:
        """What is wrong with which server at the moment."""
        with self._lock:
            return self._conditions

    def note_look(self, request: datetime) -> None:
        """Note that this process has looked for new folders, as `request` asked."""
        with self._lock:
            self._carried_out_look = request

    def note_drain(self) -> None:
        """Tell other processes, in this one's row, that it was told to stop. It is written soon."""
        with self._lock:
            self._is_draining = True
        self._thread.wake()

    def _on_session_closed(self, session: Session, **_: Any) -> None:
        if not session.is_established:
            return
        with self._lock:
            self._closed[session.row_id] = (session, timezone.now())
            while len(self._closed) > MAX_KEPT_CLOSED_SESSIONS:
                self._closed.pop(next(iter(self._closed)))

    def _on_listing_learned(self, server_name: str, listing: Listing, **_: Any) -> None:
        with self._lock:
            self._unwritten_listings[server_name] = listing

    # -- In the thread -----------------------------------------------------------------------------------------------

    def _run_round(self, is_last: bool) -> None:
        try:
            self._flush(is_last)
        finally:
            self.has_tried.set()

    def _flush(self, is_last: bool) -> None:
        now = time.monotonic()
        is_heartbeat_due = (
            now - self._last_heartbeat >= HEARTBEAT_SECONDS or self._is_draining != self._written_draining or is_last
        )
        if is_heartbeat_due and connection.vendor == "sqlite":
            # A database file that was deleted or replaced accepts writes without an error as long as it stays open.
            connection.close()
        if not self._is_migrated:
            self._require_migrations()
        if not is_last:
            self.operator_requests.read(self.process_id)
            self.has_tried.set()
        if is_heartbeat_due:
            self._write_process()
            close_rows_of_dead_processes(self.process_id)
            self.processes = processes_alive()
            self._last_heartbeat = self._last_beat = now
        elif now - self._last_beat >= self._place.beat_seconds:
            self._write_beat()
            self._last_beat = now
        with self._lock:
            # Read before the servers are written, so that their new rows are there when the request counts as done.
            look = self._carried_out_look
        revision = self._registry.revision
        if revision != self._written_revision:
            self._write_servers()
            self._written_revision = revision
        if look is not None and look != self._written_look:
            HostProcess.objects.filter(id=self.process_id).update(looked_at=look)
            self._written_look = look
        self._write_listings()
        self._write_conditions(shows_others=is_heartbeat_due)
        self._write_sessions()
        self._write_instances(is_last)
        self._call_rows.write(is_last=is_last)
        self.history.write_minutes(self.process_id)
        self._delete_surplus_rows()
        if now - self._last_upkeep >= UPKEEP_SECONDS:
            delete_old_rows()
            delete_surplus_rows()
            self.history.delete_old_minutes()
            self._call_rows.delete_surplus(CHUNKS_OF_UPKEEP)
            self._writer.retry_refused()
            self._last_upkeep = now
        self.last_flush, self.last_error = time.monotonic(), ""
        self._writer.trusts_foreign_keys = False
        self._outage.end()

    def _require_migrations(self) -> None:
        self.lacks_migrations = not is_migrated()
        if self.lacks_migrations:
            raise UnappliedMigrations
        # Not looked at again: a database that loses its tables later is an outage like others, and calls go on.
        self._is_migrated = True

    def _note_failure(self, error: Exception) -> None:
        if isinstance(error, UnappliedMigrations) and not self._outage.is_present:
            logger.error("%s", error)
        self._outage.begin(error)
        self.last_error = type(error).__name__
        self._write_everything_again()
        self._last_heartbeat = float("-inf")
        # The process's row is written first in the next round.
        self._writer.trusts_foreign_keys = True
        connection.close()

    def _write_everything_again(self) -> None:
        """Forget what was written: the database may be another one, or another process marked our sessions as lost."""
        self._written_activity.clear()
        # Which instances have a row stays known, so that those which end meanwhile are marked as ended.
        self._written_requests.clear()
        self._unwritten_clients.clear()
        self._client_rows_written_at.clear()
        self._written_conditions = self._shown_conditions = None
        self._written_revision = -1
        with self._lock:
            self._unwritten_listings = self._listings.all()

    def _write_process(self) -> None:
        with self._lock:
            is_draining = self._is_draining
        present: dict[str, Any] = {
            "last_seen_at": Now(),
            "is_draining": is_draining,
            "load": self._load.take(),
            **self._figures(),
        }
        _, is_new = HostProcess.objects.update_or_create(
            id=self.process_id,
            defaults=present,
            create_defaults={
                **present,
                "hostname": hostname(),
                "pid": os.getpid(),
                "started_at": self._started_at,
                "version": __version__,
                "node": self._place.node,
                "slot": self._place.slot,
                "peer_address": self._place.peer_address,
            },
        )
        self._written_draining = is_draining
        if is_new:
            self._write_everything_again()

    def _write_beat(self) -> None:
        """Tell the other machines that this process is alive, and nothing else."""
        if not HostProcess.objects.filter(id=self.process_id).update(last_seen_at=Now()):
            self._write_process()

    def _figures(self) -> dict[str, Any]:
        """What this process does, for the overview of the others."""
        samples = self.history.samples()
        return {
            "open_sessions": len(self._sessions),
            "calls_per_second": samples[-1].calls_per_second if samples else 0.0,
            "p95_ms": samples[-1].p95_ms if samples else None,
            "memory_bytes": resident_bytes(),
        }

    def _write_servers(self) -> None:
        now = timezone.now()
        rows = {
            found.folder: ServerRecord(
                name=found.name,
                folder=str(found.folder),
                status=ServerRecord.Status.LOADED,
                load_seconds=found.load_seconds,
                loaded_at=now,
            )
            for found in self._registry
        }
        for failure in self._registry.failures:
            # A server that is served while its newer code does not load stays "loaded", with the reason beside it.
            row = rows.setdefault(
                failure.folder,
                ServerRecord(
                    name=failure.name, folder=str(failure.folder), status=ServerRecord.Status.FAILED, loaded_at=now
                ),
            )
            row.reason, row.traceback = failure.reason, failure.traceback
        for near_miss in self._registry.near_misses:
            rows.setdefault(
                near_miss.folder,
                ServerRecord(
                    name=near_miss.name,
                    folder=str(near_miss.folder),
                    status=ServerRecord.Status.NEAR_MISS,
                    reason=near_miss.hint,
                    loaded_at=now,
                ),
            )
        here = hostname()
        for row in rows.values():
            row.hostname = here
        self._writer.upsert(
            list(rows.values()),
            "folder",
            ["name", "hostname", "status", "reason", "traceback", "load_seconds", "loaded_at"],
        )
        # Another machine that is running may have folders that this one does not have.
        elsewhere = running_hosts().exclude(hostname=here).values_list("hostname", flat=True)
        gone = ServerRecord.objects.exclude(folder__in=[row.folder for row in rows.values()])
        gone.exclude(hostname__in=list(elsewhere)).update(status=ServerRecord.Status.REMOVED, condition="")

    def _write_conditions(self, *, shows_others: bool) -> None:
        """Write what this process knows into its row, and what all processes know into the servers' rows."""
        with self._lock:
            conditions = self._conditions
        if conditions != self._written_conditions:
            storable_ones = {name: storable(text, 500) for name, text in conditions.items()}
            HostProcess.objects.filter(id=self.process_id).update(conditions=storable_ones)
        elif not shows_others:
            return
        self._written_conditions = conditions
        shown = conditions_of_servers()
        if shown == self._shown_conditions:
            return
        ServerRecord.objects.exclude(condition="").exclude(name__in=shown).update(condition="")
        for server_name, condition in shown.items():
            with self._writer.skipping_refused(f"the condition of server {server_name}"):
                ServerRecord.objects.filter(name=server_name).update(condition=condition)
        self._shown_conditions = shown

    def _write_listings(self) -> None:
        with self._lock:
            listings, self._unwritten_listings = self._unwritten_listings, {}
        for server_name, listing in listings.items():
            with self._writer.skipping_refused(f"the listing of server {server_name}"):
                ServerRecord.objects.filter(name=server_name, status=ServerRecord.Status.LOADED).update(
                    version=storable(listing.version, 255),
                    tools=_storable_names(listing.tools),
                    resources=_storable_names(listing.resources),
                    prompts=_storable_names(listing.prompts),
                    tool_definitions=listing.tool_definitions,
                )

    def _write_sessions(self) -> None:
        # The closed ones first: a session that closes between the two looks is then written as open now, and as closed
        # in the next round.
        with self._lock:
            closed = dict(self._closed)
        going_on = self._going_on_elsewhere(session for session, _ in closed.values())
        # This looks at all sessions each time, so it must be cheap for those that are silent.
        written = self._written_activity
        live = [
            session
            for session in self._sessions
            if session.is_established and not (closed and session.row_id in closed)
        ]
        active = [session for session in live if written.get(session) != session.last_activity]
        seen = {session: session.last_activity for session in active}
        self._writer.upsert(
            [self._session_row(session, None) for session in active]
            + [
                self._session_row(session, closed_at)
                for session, closed_at in closed.values()
                if session.row_id not in going_on
            ],
            "id",
            _UPDATED_SESSION_FIELDS,
        )
        if active or len(live) != len(written):
            self._written_activity = {
                session: seen[session] if session in seen else written[session] for session in live
            }
        with self._lock:
            for row_id in closed:
                self._closed.pop(row_id, None)
        self._new_ended_rows.update(session.identity.user_id for session, _ in closed.values())

    def _going_on_elsewhere(self, closed: Iterable[Session]) -> set[UUID]:
        """The sessions whose rows belong to another process by now, which has taken them over."""
        ended_here = [session.row_id for session in closed if session.end_reason in GOES_ON]
        found: set[UUID] = set()
        for start in range(0, len(ended_here), BATCH_SIZE):
            rows = SessionRecord.objects.filter(id__in=ended_here[start : start + BATCH_SIZE])
            found.update(rows.exclude(process=self.process_id).values_list("id", flat=True))
        return found

    def _delete_surplus_rows(self) -> None:
        """Delete rows of users who got many since the last time, so that nobody has many more than are kept."""
        many_of_user = max(1, conf.max_session_rows_per_user // SURPLUS_PARTS)
        users = [user_id for user_id, count in self._new_ended_rows.items() if count >= many_of_user]
        delete_surplus_rows_of(storable(user_id, 255) for user_id in users)
        for user_id in users:
            del self._new_ended_rows[user_id]
        if self._new_ended_rows.total() >= max(1, (conf.max_session_rows or MANY_ROWS) // SURPLUS_PARTS):
            delete_surplus_rows()
            self._new_ended_rows.clear()

    def _session_row(self, session: Session, closed_at: datetime | None) -> SessionRecord:
        return SessionRecord(
            id=session.row_id,
            process_id=self.process_id,
            server_name=session.server_name,
            user_id=session.identity.user_id,
            key=_public_key(session.identity),
            transport=session.transport,
            client_name=session.client_name,
            client_version=session.client_version,
            # The client may have invented it.
            protocol_version=session.protocol_version and metrics.version_label(session.protocol_version),
            address=session.address,
            opened_at=session.opened_at,
            last_activity_at=datetime.fromtimestamp(session.last_activity, UTC),
            closed_at=closed_at,
            messages_in=session.messages_in,
            messages_out=session.messages_out,
            calls=session.calls,
            state=SessionRecord.State.OPEN if closed_at is None else SessionRecord.State.CLOSED,
            end_reason=session.end_reason,
        )

    def _write_instances(self, is_last: bool) -> None:
        instances = [] if is_last else list(self._instances)
        # This looks at all instances each time, so it must be cheap for those that nobody asks.
        written = self._written_requests
        changed = [instance for instance in instances if written.get(instance) != instance.activity.requests]
        # Before the rows: a request that comes in between is then written in the next round.
        seen = {instance: instance.activity.requests for instance in changed}
        self._instance_rows.update((instance.row_id, instance.identity.user_id) for instance in changed)
        self._unwritten_clients.update(instance for instance, requests in seen.items() if requests)
        self._write_stateless_clients(
            [instance for instance in self._unwritten_clients if self._is_client_row_due(instance)]
        )
        self._writer.upsert(
            [self._instance_row(instance) for instance in changed],
            "id",
            ["last_request_at", "requests", "calls", "ended_at"],
        )
        written.update(seen)
        if len(self._instance_rows) > len(instances):
            self._write_ended_instances(instances)

    def _instance_row(self, instance: Instance) -> InstanceRecord:
        activity = instance.activity
        return InstanceRecord(
            id=instance.row_id,
            process_id=self.process_id,
            server_name=instance.server_name,
            user_id=instance.identity.user_id,
            started_at=instance.started_at,
            last_request_at=datetime.fromtimestamp(activity.last, UTC) if activity.requests else None,
            requests=activity.requests,
            calls=activity.calls,
        )

    def _write_ended_instances(self, instances: Sequence[Instance]) -> None:
        """Mark the rows of all instances as ended that are not among `instances`."""
        alive = {instance.row_id for instance in instances}
        ended = [row_id for row_id in self._instance_rows if row_id not in alive]
        for start in range(0, len(ended), BATCH_SIZE):
            batch, now = ended[start : start + BATCH_SIZE], timezone.now()
            InstanceRecord.objects.filter(id__in=batch).update(ended_at=now)
            SessionRecord.objects.filter(id__in=batch).update(
                state=SessionRecord.State.CLOSED, closed_at=now, end_reason="its instance ended"
            )
        for row_id in ended:
            self._new_ended_rows[self._instance_rows.pop(row_id)] += 1
            self._client_rows_written_at.pop(row_id, None)
        self._written_requests = {instance: self._written_requests[instance] for instance in instances}
        self._unwritten_clients.intersection_update(instances)

    def _is_client_row_due(self, instance: Instance) -> bool:
        """Whether the row of a stateless client is to be written: the first time at once, then now and then."""
        written_at = self._client_rows_written_at.get(instance.row_id)
        return written_at is None or time.monotonic() - written_at >= CLIENT_ROW_SECONDS

    def _write_stateless_clients(self, instances: list[Instance]) -> None:
        """Write who sends stateless requests: one row for each instance, which is one user at one server."""
        self._writer.upsert(
            [
                SessionRecord(
                    id=instance.row_id,
                    process_id=self.process_id,
                    server_name=instance.server_name,
                    user_id=instance.identity.user_id,
                    key=_public_key(instance.identity),
                    transport=STATELESS,
                    client_name=instance.activity.client_name,
                    client_version=instance.activity.client_version,
                    # The client may have invented it.
                    protocol_version=metrics.version_label(instance.activity.protocol_version),
                    address=instance.activity.address,
                    opened_at=instance.started_at,
                    last_activity_at=datetime.fromtimestamp(instance.activity.last, UTC),
                    messages_in=instance.activity.requests,
                    calls=instance.activity.calls,
                    state=SessionRecord.State.STATELESS,
                )
                for instance in instances
            ],
            "id",
            [*_UPDATED_SESSION_FIELDS, "address"],
        )
        self._unwritten_clients.difference_update(instances)
        self._client_rows_written_at.update((instance.row_id, time.monotonic()) for instance in instances)


def _public_key(identity: Identity) -> str:
    return "" if identity.grant is None else identity.grant.public


def _storable_names(names: Iterable[str]) -> list[str]:
    return [storable(name, MAX_LISTED_NAME_LENGTH) for name in names]
