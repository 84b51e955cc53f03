"""Reads and writes the rows by which sessions go on in other processes. Synchronous: never for an event loop.

Not here: which rows are written and when (`restorable_sessions`), how a session is opened again
(`gateway.endpoints.restoring`).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import IntegrityError, OperationalError, transaction
from django.db.models import F
from django.utils import timezone

from gateway.records.models import RestorableSession, SessionRecord
from gateway.records.processes import running_hosts
from gateway.records.row_writer import BATCH_SIZE
from gateway.records.upkeep import has_ended_here

MAX_LOST_OF_CALLER: Final = 100
"""How many lost HTTP+SSE sessions of one program of a caller are kept; the newest."""

MAX_CANDIDATES: Final = 20
"""How many sessions of a caller are looked at to find one that was lost."""

TAKING_ATTEMPTS: Final = 3
"""How many times a process tries to take a session that others try to take at the same moment."""

_WRITTEN_FIELDS: Final = [
    "initialize",
    "protocol_version",
    "is_initialized",
    "log_level",
    "subscriptions",
    "last_used_at",
    "lost_at",
]
"""Fields that the process that has a session may change. The other fields say whose session it is."""


@dataclass(frozen=True, slots=True)
class KeptSession:
    """A session as it was when its row was last written."""

    row_id: UUID
    epoch: int
    initialize: bytes
    protocol_version: str
    is_initialized: bool
    log_level: str
    subscriptions: tuple[str, ...]
    opened_at: datetime
    messages_in: int = 0
    messages_out: int = 0
    calls: int = 0


class RestorableRows:
    """The rows. Every method may be called in any thread that may wait, and raises `django.db.DatabaseError`."""

    def __init__(self, holder: UUID) -> None:
        """`holder`: this process."""
        self._holder = holder

    # -- Writing -----------------------------------------------------------------------------------------------------

    def write(self, rows: Sequence[RestorableSession]) -> None:
        """Write sessions of this process."""
        for row in rows:
            row.holder = self._holder
        try:
            self._write(rows)
        except (IntegrityError, ValueError):
            # The other rows must be written even if one cannot be.
            for row in rows:
                try:
                    self._write([row])
                except (IntegrityError, ValueError):
                    continue

    def _write(self, rows: Sequence[RestorableSession]) -> None:
        with transaction.atomic():
            RestorableSession.objects.bulk_create(
                rows, batch_size=BATCH_SIZE, update_conflicts=True, unique_fields=["id"], update_fields=_WRITTEN_FIELDS
            )

    def touch(self, row_ids: Iterable[UUID]) -> None:
        """Note that these sessions are in use."""
        for batch in _batches(row_ids):
            RestorableSession.objects.filter(id__in=batch).update(last_used_at=timezone.now())

    def note_lost(self, row_ids: Iterable[UUID]) -> None:
        """Note that the streams of these HTTP+SSE sessions have ended, and keep the newest of each caller."""
        now = timezone.now()
        for batch in _batches(row_ids):
            lost = RestorableSession.objects.filter(id__in=batch)
            lost.update(lost_at=now, last_used_at=now)
            for caller in set(lost.values_list("caller_digest", flat=True)):
                of_caller = RestorableSession.objects.filter(caller_digest=caller, lost_at__isnull=False)
                surplus = list(of_caller.order_by("-lost_at").values_list("id", flat=True)[MAX_LOST_OF_CALLER:])
                self.delete(surplus)

    def delete(self, row_ids: Iterable[UUID]) -> None:
        """Delete the rows of sessions that are over."""
        for batch in _batches(row_ids):
            RestorableSession.objects.filter(id__in=batch).delete()

    def delete_unused(self, idle_seconds: float) -> None:
        """Delete the rows of sessions that nobody has used for so long."""
        RestorableSession.objects.filter(last_used_at__lt=_before(idle_seconds)).delete()

    # -- Taking over -------------------------------------------------------------------------------------------------

    def taken_by_others(self, within_seconds: float) -> dict[UUID, int]:
        """The sessions that other processes have taken over lately, with their epochs."""
        taken = RestorableSession.objects.filter(taken_at__gt=_before(within_seconds)).exclude(holder=self._holder)
        return dict(taken.values_list("id", "epoch"))

    def take(self, id_digests: Sequence[str], caller_digests: Sequence[str], idle_seconds: float) -> KeptSession | None:
        """Take a Streamable HTTP session over from the process that has it. None if there is no such session.

        If several processes do this at once, the last one gets it.
        """
        for _ in range(TAKING_ATTEMPTS):
            row = RestorableSession.objects.filter(
                id_digest__in=id_digests, caller_digest__in=caller_digests, transport="streamable-http"
            ).first()
            if row is None:
                return None
            record = SessionRecord.objects.filter(id=row.id).first()
            if row.last_used_at < _before(idle_seconds) or (record is not None and record.is_end_requested):
                row.delete()
                return None
            now = timezone.now()
            taken = RestorableSession.objects.filter(id=row.id, epoch=row.epoch).update(
                epoch=F("epoch") + 1, holder=self._holder, taken_at=now, last_used_at=now
            )
            if taken:
                return _kept(row, row.epoch + 1, record)
        raise OperationalError("Other processes take the session over again and again.")

    def adopt(self, caller_digests: Sequence[str], live: Iterable[UUID], idle_seconds: float) -> KeptSession | None:
        """What the client said in the caller's newest lost HTTP+SSE session, or in the newest one if none was lost.

        None if there is no session.

        A lost session is taken: nobody else gets it. `live` are the sessions that this process has open.
        """
        live = set(live)
        rows = list(
            RestorableSession.objects.filter(
                caller_digest__in=caller_digests, transport="sse", last_used_at__gte=_before(idle_seconds)
            ).order_by("-last_used_at")[:MAX_CANDIDATES]
        )
        for row in rows:
            if row.id not in live and self._is_lost(row) and RestorableSession.objects.filter(id=row.id).delete()[0]:
                return _kept(row, 1, None)
        # Its end may not have been noticed yet, for example if a machine slept or a node died.
        return _kept(rows[0], 1, None) if rows else None

    def _is_lost(self, row: RestorableSession) -> bool:
        if row.lost_at is not None or row.holder == self._holder:
            return True
        process = running_hosts().filter(id=row.holder).first()
        return process is None or has_ended_here(process)


def subscriptions_text(subscriptions: Iterable[str]) -> str:
    """Subscriptions as they stand in a row."""
    uris = list(subscriptions)
    return json.dumps(uris) if uris else ""


def _kept(row: RestorableSession, epoch: int, record: SessionRecord | None) -> KeptSession:
    counts = (
        {} if record is None else {name: getattr(record, name) for name in ("messages_in", "messages_out", "calls")}
    )
    return KeptSession(
        row_id=row.id,
        epoch=epoch,
        initialize=row.initialize.encode(),
        protocol_version=row.protocol_version,
        is_initialized=row.is_initialized,
        log_level=row.log_level,
        subscriptions=tuple(json.loads(row.subscriptions or "[]")),
        opened_at=timezone.now() if record is None else record.opened_at,
        **counts,
    )


def _before(seconds: float) -> datetime:
    return timezone.now() - timedelta(seconds=seconds)


def _batches(row_ids: Iterable[UUID]) -> Iterable[list[UUID]]:
    ids = list(row_ids)
    return (ids[start : start + BATCH_SIZE] for start in range(0, len(ids), BATCH_SIZE))
