"""Rows of restorable sessions without a database: what several hosts inside the test's process share."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from uuid import UUID

from django.db import OperationalError
from django.utils import timezone

from gateway.records.models import RestorableSession
from gateway.records.restorable_rows import KeptSession, RestorableRows, _kept


class Table:
    """The rows, and whether they can be reached."""

    def __init__(self) -> None:
        self.rows: dict[UUID, RestorableSession] = {}
        self.lock = threading.Lock()
        self.is_away = False
        self.look_ups = 0

    def of(self, holder: UUID) -> MemoryRows:
        return MemoryRows(self, holder)

    def texts(self) -> str:
        return " ".join(str(vars(row)) for row in self.rows.values())


class MemoryRows(RestorableRows):
    """What one process does with them."""

    def __init__(self, table: Table, holder: UUID) -> None:
        super().__init__(holder)
        self._table = table

    def _reach(self) -> None:
        if self._table.is_away:
            raise OperationalError("away")

    def write(self, rows: Sequence[RestorableSession]) -> None:
        self._reach()
        for row in rows:
            before = self._table.rows.get(row.id)
            row.holder = self._holder if before is None else before.holder
            row.epoch = row.epoch if before is None else before.epoch
            row.taken_at = None if before is None else before.taken_at
            self._table.rows[row.id] = row

    def touch(self, row_ids: Iterable[UUID]) -> None:
        self._reach()
        for row_id in row_ids:
            if row_id in self._table.rows:
                self._table.rows[row_id].last_used_at = timezone.now()

    def note_lost(self, row_ids: Iterable[UUID]) -> None:
        self._reach()
        for row_id in row_ids:
            if row_id in self._table.rows:
                self._table.rows[row_id].lost_at = timezone.now()

    def delete(self, row_ids: Iterable[UUID]) -> None:
        self._reach()
        for row_id in row_ids:
            self._table.rows.pop(row_id, None)

    def delete_unused(self, idle_seconds: float) -> None:
        self._reach()

    def taken_by_others(self, within_seconds: float) -> dict[UUID, int]:
        self._reach()
        return {
            row.id: row.epoch
            for row in list(self._table.rows.values())
            if row.taken_at is not None and row.holder != self._holder
        }

    def take(self, id_digests: Sequence[str], caller_digests: Sequence[str], idle_seconds: float) -> KeptSession | None:
        self._reach()
        time.sleep(0.01)  # as long as a database takes, so that two could be here at once
        with self._table.lock:
            self._table.look_ups += 1
            for row in self._table.rows.values():
                is_meant = row.id_digest in id_digests and row.caller_digest in caller_digests
                if is_meant and row.last_used_at > timezone.now() - timedelta(seconds=idle_seconds):
                    row.epoch, row.holder, row.taken_at = row.epoch + 1, self._holder, timezone.now()
                    return _kept(copy.copy(row), row.epoch, None)
        return None

    def adopt(self, caller_digests: Sequence[str], live: Iterable[UUID], idle_seconds: float) -> KeptSession | None:
        self._reach()
        with self._table.lock:
            mine = [row for row in self._table.rows.values() if row.caller_digest in caller_digests]
            lost = [row for row in mine if row.lost_at is not None]
            for row in sorted(lost or mine, key=lambda row: row.last_used_at, reverse=True):
                if row in lost:
                    del self._table.rows[row.id]
                return _kept(row, 1, None)
        return None
