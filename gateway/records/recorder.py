"""Mirrors what is in memory into rows: one thread that writes in batches, away from every request.

Lives here: when and what is written, pruning, and who counts as dead. A slow, locked or missing database delays rows
and nothing else: what could not be written is written later. What operators want is read first, whether or not rows can
be written.
"""

import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

from django.db import DatabaseError, DataError, IntegrityError, connection
from django.db.models import Exists, Model, OuterRef, Q
from django.utils import timezone

from gateway import signals
from gateway.catalog.registry import Registry
from gateway.conf import conf
from gateway.instances.instances import Instance
from gateway.instances.offers import Offer, Offers
from gateway.instances.policies import Policy, default_policy
from gateway.records import models
from gateway.records.models import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS, HostProcess
from gateway.storable import make_storable, storable
from gateway.transports.sessions import Session, Sessions

logger = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 0.5
"""How often rows are brought up to date. Operators see events within two seconds."""

PRUNE_SECONDS: Final = 600.0
"""How often old rows are deleted."""

LONGEST_RETENTION_DAYS: Final = 36_500.0
"""What longer times are taken for: no date is before the year 1."""

MAX_KEPT_CLOSED_SESSIONS: Final = 50_000
"""How many ended sessions wait for a database that is away; the oldest are dropped beyond it."""

STOP_TIMEOUT_SECONDS: Final = 3.0
"""How long the last write may take."""

MAX_OFFERED_NAME_LENGTH: Final = 1000
"""Longest name of a tool, URI of a resource or name of a prompt that is kept."""

_BATCH_SIZE: Final = 500
"""Rows in one statement."""

_UNKNOWN_REQUESTS: Final = -1
"""How many requests an instance's row has, where nobody knows: unlike any number that is to be written."""

_ERRORS_OF_ROWS: Final = (DataError, IntegrityError, ValueError, TypeError, OverflowError)
"""What the values of one row can cause. All else is the database's: it is away, or has no such table yet."""

_UPDATED_FIELDS: Final = [
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
    """Writes the rows of one process. Receives signals on the host's loop, writes in its own thread."""

    def __init__(self, registry: Registry, sessions: Sessions, instances: Iterable[Instance], offers: Offers) -> None:
        self._registry = registry
        self._sessions = sessions
        self._instances = instances
        self._process_id = uuid4()
        self._started_at = timezone.now()
        self._lock = threading.Lock()
        self._closed: dict[UUID, tuple[Session, datetime]] = {}
        self._written_activity: dict[UUID, float] = {}
        self._offers = offers
        self._unwritten_offers: dict[str, Offer] = {}
        self._wanted_ends: list[UUID] = []
        self._wanted_reloads: set[str] = set()
        self._reloads_seen_through = self._started_at
        self.has_tried = threading.Event()
        """Set once the rows have been read for the first time, or could not be."""
        self._policies: dict[str, Policy] | None = None
        self._read_policies: dict[str, Policy] = {}
        self._conditions: dict[str, str] = {}
        self._written_conditions: dict[str, str] | None = None
        self._written_revision = -1
        self._written_instances: dict[UUID, int] = {}
        self._unwritable: set[object] = set()
        """Rows whose values no database takes, by what identifies them. They are tried again now and then."""
        self._is_failing = False
        self.last_flush: float | None = None
        """When all rows were last up to date (monotonic seconds); None before the first time."""
        self.last_error = ""
        """Which error keeps them from being so now; no text, which could hold what a client sent."""
        self._last_heartbeat = self._last_prune = float("-inf")
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to listen and to write."""
        signals.session_closed.connect(self._on_session_closed)
        signals.offer_learned.connect(self._on_offer_learned)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what is left, for at most `STOP_TIMEOUT_SECONDS`, and stop."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join(STOP_TIMEOUT_SECONDS)
            self._thread = None
            signals.session_closed.disconnect(self._on_session_closed)
            signals.offer_learned.disconnect(self._on_offer_learned)

    def take_wanted_ends(self) -> list[UUID]:
        """Row ids of this process's sessions that operators want ended, as last read from the database."""
        with self._lock:
            wanted, self._wanted_ends = self._wanted_ends, []
        return wanted

    def take_wanted_reloads(self) -> set[str]:
        """Names of servers that operators want loaded anew."""
        with self._lock:
            wanted, self._wanted_reloads = self._wanted_reloads, set()
        return wanted

    def take_policies(self) -> dict[str, Policy] | None:
        """The servers' policies if they have changed since the last call, else None."""
        with self._lock:
            policies, self._policies = self._policies, None
        return policies

    def note_conditions(self, conditions: dict[str, str]) -> None:
        """Show operators what is wrong with which server at the moment."""
        with self._lock:
            self._conditions = conditions

    def _on_session_closed(self, session: Session, **_: Any) -> None:
        with self._lock:
            self._closed[session.row_id] = (session, timezone.now())
            while len(self._closed) > MAX_KEPT_CLOSED_SESSIONS:
                self._closed.pop(next(iter(self._closed)))

    def _on_offer_learned(self, server_name: str, offer: Offer, **_: Any) -> None:
        with self._lock:
            self._unwritten_offers[server_name] = offer

    def _run(self) -> None:
        is_stopping = False
        while True:
            try:
                self._flush(is_stopping)
            except Exception as error:  # the thread must live on: rows catch up when the cause is gone
                self._note_failure(error)
            self.has_tried.set()
            if is_stopping:
                connection.close()
                return
            is_stopping = self._stopping.wait(FLUSH_SECONDS)

    def _write_all_anew(self) -> None:
        """Take nothing for written: the database may be a new one, or others may have marked our sessions as lost."""
        self._written_activity.clear()
        # Which they were stays known, so that those which end meanwhile are marked so.
        self._written_instances = dict.fromkeys(self._written_instances, _UNKNOWN_REQUESTS)
        self._written_conditions = None
        self._written_revision = -1
        with self._lock:
            self._unwritten_offers = self._offers.all()

    def _note_failure(self, error: Exception) -> None:
        if not self._is_failing:
            # No text: PostgreSQL's has the row's values.
            logger.warning("Rows cannot be written, the admin shows old facts until they can: %s", type(error).__name__)
            if not isinstance(error, DatabaseError):
                logger.error("It happened in\n%s", "".join(traceback.format_tb(error.__traceback__)))
        self._is_failing = True
        self.last_error = type(error).__name__
        self._write_all_anew()
        self._last_heartbeat = float("-inf")
        connection.close()

    def _flush(self, is_stopping: bool) -> None:
        now = time.monotonic()
        is_heartbeat_due = now - self._last_heartbeat >= HEARTBEAT_SECONDS or is_stopping
        if is_heartbeat_due:
            # A database file that was deleted or replaced is written to without an error as long as it stays open.
            connection.close()
        if not is_stopping:
            self._read_wanted_ends()
            self._read_servers()
            self.has_tried.set()
        if is_heartbeat_due:
            self._write_process()
            self._mark_lost()
            self._last_heartbeat = now
        revision = self._registry.revision
        if revision != self._written_revision:
            self._write_servers()
            self._written_revision = revision
        self._write_offers()
        self._write_conditions()
        self._write_sessions()
        self._write_instances(is_stopping)
        if now - self._last_prune >= PRUNE_SECONDS:
            self._prune()
            self._unwritable.clear()
            self._last_prune = now
        self.last_flush, self.last_error = time.monotonic(), ""
        if self._is_failing:
            self._is_failing = False
            logger.info("Rows are being written again")

    def _write_process(self) -> None:
        _, is_new = HostProcess.objects.update_or_create(
            id=self._process_id,
            defaults={"last_seen_at": timezone.now()},
            create_defaults={
                "hostname": _hostname(),
                "pid": os.getpid(),
                "started_at": self._started_at,
                "last_seen_at": timezone.now(),
            },
        )
        if is_new:
            self._write_all_anew()

    def _write_servers(self) -> None:
        loaded, failed = models.ServerRecord.Status.LOADED, models.ServerRecord.Status.FAILED
        now = timezone.now()
        rows = {
            found.folder: models.ServerRecord(
                name=found.name,
                folder=str(found.folder),
                status=loaded,
                load_seconds=found.load_seconds,
                loaded_at=now,
            )
            for found in self._registry
        }
        for failure in self._registry.failures:
            # A served one whose newer code does not load stays loaded, with the reason beside it.
            row = rows.setdefault(
                failure.folder,
                models.ServerRecord(name=failure.name, folder=str(failure.folder), status=failed, loaded_at=now),
            )
            row.reason, row.traceback = failure.reason, failure.traceback
        self._upsert(
            list(rows.values()), "folder", ["name", "status", "reason", "traceback", "load_seconds", "loaded_at"]
        )
        gone = models.ServerRecord.objects.exclude(folder__in=[row.folder for row in rows.values()])
        gone.update(status=models.ServerRecord.Status.REMOVED, condition="")

    def _write_conditions(self) -> None:
        with self._lock:
            conditions = self._conditions
        if conditions == self._written_conditions:
            return
        models.ServerRecord.objects.exclude(condition="").exclude(name__in=conditions).update(condition="")
        for server_name, condition in conditions.items():
            with self._leaving_out(f"the condition of server {server_name}"):
                models.ServerRecord.objects.filter(name=server_name).update(condition=storable(condition, 500))
        self._written_conditions = conditions

    def _write_instances(self, is_stopping: bool) -> None:
        instances = [] if is_stopping else list(self._instances)
        changed = [
            instance
            for instance in instances
            if self._written_instances.get(instance.row_id) != instance.activity.requests
        ]
        self._upsert(
            [
                models.InstanceRecord(
                    id=instance.row_id,
                    process_id=self._process_id,
                    server_name=instance.server_name,
                    user_id=instance.identity.user_id,
                    started_at=instance.started_at,
                    last_request_at=(
                        datetime.fromtimestamp(instance.activity.last, UTC) if instance.activity.requests else None
                    ),
                    requests=instance.activity.requests,
                    calls=instance.activity.calls,
                )
                for instance in changed
            ],
            "id",
            ["last_request_at", "requests", "calls", "ended_at"],
        )
        alive = {instance.row_id: instance.activity.requests for instance in instances}
        ended = [row_id for row_id in self._written_instances if row_id not in alive]
        for start in range(0, len(ended), _BATCH_SIZE):
            models.InstanceRecord.objects.filter(id__in=ended[start : start + _BATCH_SIZE]).update(
                ended_at=timezone.now()
            )
        self._written_instances = alive

    def _write_offers(self) -> None:
        with self._lock:
            offers, self._unwritten_offers = self._unwritten_offers, {}
        for server_name, offer in offers.items():
            with self._leaving_out(f"what server {server_name} offers"):
                models.ServerRecord.objects.filter(name=server_name, status=models.ServerRecord.Status.LOADED).update(
                    version=storable(offer.version, 255),
                    tools=_storable_names(offer.tools),
                    resources=_storable_names(offer.resources),
                    prompts=_storable_names(offer.prompts),
                )

    def _write_sessions(self) -> None:
        # Closed ones first: a session that closes between the two looks is then written as open once more, and as
        # closed the next time.
        with self._lock:
            closed = dict(self._closed)
        live = [session for session in self._sessions if session.row_id not in closed]
        active = [session for session in live if self._written_activity.get(session.row_id) != session.last_activity]
        seen = {session.row_id: session.last_activity for session in active}
        self._upsert(
            [self._row(session, None) for session in active]
            + [self._row(session, closed_at) for session, closed_at in closed.values()],
            "id",
            _UPDATED_FIELDS,
        )
        live_ids = {session.row_id for session in live}
        self._written_activity = {
            row_id: activity for row_id, activity in {**self._written_activity, **seen}.items() if row_id in live_ids
        }
        with self._lock:
            for row_id in closed:
                self._closed.pop(row_id, None)

    def _row(self, session: Session, closed_at: datetime | None) -> models.SessionRecord:
        return models.SessionRecord(
            id=session.row_id,
            process_id=self._process_id,
            server_name=session.server_name,
            user_id=session.identity.user_id,
            transport=session.transport,
            client_name=session.client_name,
            client_version=session.client_version,
            protocol_version=session.protocol_version,
            address=session.address,
            opened_at=session.opened_at,
            last_activity_at=datetime.fromtimestamp(session.last_activity, UTC),
            closed_at=closed_at,
            messages_in=session.messages_in,
            messages_out=session.messages_out,
            calls=session.calls,
            state=models.SessionRecord.State.OPEN if closed_at is None else models.SessionRecord.State.CLOSED,
            end_reason=session.end_reason,
        )

    def _upsert(self, rows: Sequence[Model], unique_field: str, updated_fields: list[str]) -> None:
        """Write rows of one model in batches; one by one where some row's values do not let its batch be written."""
        for row in rows:
            make_storable(row)
        if self._unwritable:
            rows = [row for row in rows if getattr(row, unique_field) not in self._unwritable]
        if not rows:
            return
        write = partial(
            type(rows[0])._default_manager.bulk_create,
            batch_size=_BATCH_SIZE,
            update_conflicts=True,
            unique_fields=[unique_field],
            update_fields=updated_fields,
        )
        try:
            write(rows)
            return
        except _ERRORS_OF_ROWS as error:
            self._require_own_fault(error)
        for row in rows:
            key = getattr(row, unique_field)
            with self._leaving_out(f"{row._meta.verbose_name} {key}"):
                write([row])
                continue
            self._unwritable.add(key)

    @contextmanager
    def _leaving_out(self, what: str) -> Iterator[None]:
        """Go on without what the block writes if its own values are why it cannot be written."""
        try:
            yield
        except _ERRORS_OF_ROWS as error:
            self._require_own_fault(error)
            # No text: PostgreSQL's has the row's values.
            logger.warning("The row of %s is left out, it cannot be written: %s", what, type(error).__name__)

    def _require_own_fault(self, error: Exception) -> None:
        """Raise `error` if it may be for want of this process's row: a database that was replaced has none.

        After a failure all is written anew, that row first.
        """
        if isinstance(error, IntegrityError) and not self._is_failing:
            raise error

    def _read_wanted_ends(self) -> None:
        wanted = models.SessionRecord.objects.filter(
            process=self._process_id, state=models.SessionRecord.State.OPEN, is_end_wanted=True
        ).values_list("id", flat=True)
        found = list(wanted)
        with self._lock:
            self._wanted_ends = found

    def _read_servers(self) -> None:
        """Read what operators want of each server, also of those that are not served: they may come back any moment."""
        served = {storable(str(found.folder), 1024) for found in self._registry}
        # Of rows with one name the last one stands: that of the folder in use, or the one that was loaded last.
        rows = sorted(models.ServerRecord.objects.order_by("loaded_at"), key=lambda row: row.folder in served)
        default = default_policy()
        policies = {
            row.name: Policy(
                is_enabled=row.is_enabled,
                call_timeout_seconds=_given(row.call_timeout_seconds, default.call_timeout_seconds),
                max_concurrent_calls=_given(row.max_concurrent_calls, default.max_concurrent_calls),
                max_concurrent_calls_per_user=_given(
                    row.max_concurrent_calls_per_user, default.max_concurrent_calls_per_user
                ),
                max_threads=_given(row.max_threads, default.max_threads),
            )
            for row in rows
        }
        wanted = models.ServerRecord.objects.filter(reload_wanted_at__gt=self._reloads_seen_through)
        reloads = {row.name: row.reload_wanted_at for row in wanted if row.reload_wanted_at is not None}
        with self._lock:
            if policies != self._read_policies:
                self._policies = self._read_policies = policies
            self._wanted_reloads |= set(reloads)
        self._reloads_seen_through = max([self._reloads_seen_through, *reloads.values()])

    def _mark_lost(self) -> None:
        """Mark what processes left open that died without saying so."""
        is_open, is_alive = Q(state=models.SessionRecord.State.OPEN), Q(ended_at=None)
        silent_since = timezone.now() - timedelta(seconds=DEAD_AFTER_SECONDS)
        others = HostProcess.objects.exclude(id=self._process_id).filter(
            Exists(models.SessionRecord.objects.filter(is_open, process=OuterRef("pk")))
            | Exists(models.InstanceRecord.objects.filter(is_alive, process=OuterRef("pk")))
        )
        for process in others:
            # On the same machine there is no need to wait.
            is_here = process.hostname == _hostname()
            if process.last_seen_at < silent_since or (is_here and not _is_running(process.pid)):
                process.sessions.filter(is_open).update(
                    state=models.SessionRecord.State.LOST, closed_at=process.last_seen_at, end_reason="its process died"
                )
                process.instances.filter(is_alive).update(ended_at=process.last_seen_at)

    def _prune(self) -> None:
        oldest = timezone.now() - timedelta(days=min(conf.session_retention_days, LONGEST_RETENTION_DAYS))
        models.SessionRecord.objects.filter(closed_at__lt=oldest).delete()
        models.InstanceRecord.objects.filter(ended_at__lt=oldest).delete()
        HostProcess.objects.filter(last_seen_at__lt=oldest, sessions=None, instances=None).delete()


_Limit = TypeVar("_Limit", int, float)


def _hostname() -> str:
    return storable(socket.gethostname(), 255)


def _storable_names(names: Iterable[str]) -> list[str]:
    return [storable(name, MAX_OFFERED_NAME_LENGTH) for name in names]


def _given(value: _Limit | None, default: _Limit) -> _Limit:
    return default if value is None else value


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
