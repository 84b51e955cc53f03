"""What operators asked for: sessions to end, servers to reload, new folders, and how each server is to be run.

Operators ask by rows (the admin writes them). The recorder's thread reads the rows, also while nothing can be written.
The host takes what was read and carries it out once a second.
"""

import threading
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from gateway.catalog.registry import Registry
from gateway.instances.policies import LIMIT_FIELDS, Policy, default_policy
from gateway.records.models import HostProcess, ServerRecord, SessionRecord
from gateway.storable import storable

_READ_FIELDS: Final = (
    "name",
    "folder",
    "loaded_at",
    "is_enabled",
    *LIMIT_FIELDS,
    "isolation",
)
"""What is read of servers' rows twice a second. Tracebacks and definitions of tools are long."""


class OperatorRequests:
    """The requests of operators that this process has not carried out. `read` runs in the recorder's thread.

    The `take_` methods may be called from any thread.
    """

    def __init__(self, registry: Registry, since: datetime) -> None:
        """`since`: reloads that were asked for before this moment are done."""
        self._registry = registry
        self._lock = threading.Lock()
        self._sessions_to_end: list[UUID] = []
        self._servers_to_reload: set[str] = set()
        self._reloads_seen_through = since
        self._look_request: datetime | None = None
        self._looks_seen_through = since
        self._read_policies: dict[str, Policy] = {}
        self._changed_policies: dict[str, Policy] | None = None

    def take_sessions_to_end(self) -> list[UUID]:
        """Row ids of this process's sessions that are to end, as last read."""
        with self._lock:
            taken, self._sessions_to_end = self._sessions_to_end, []
        return taken

    def take_servers_to_reload(self) -> set[str]:
        """Names of the servers that are to be reloaded."""
        with self._lock:
            taken, self._servers_to_reload = self._servers_to_reload, set()
        return taken

    def take_look_request(self) -> datetime | None:
        """The request to look for new folders, by its time; None if there is no new one."""
        with self._lock:
            taken, self._look_request = self._look_request, None
        return taken

    def take_policies(self) -> dict[str, Policy] | None:
        """The servers' policies if they have changed since the last call, else None."""
        with self._lock:
            taken, self._changed_policies = self._changed_policies, None
        return taken

    def read(self, process_id: UUID) -> None:
        """Read the rows. Raises `django.db.DatabaseError`."""
        to_end = SessionRecord.objects.filter(process=process_id, state=SessionRecord.State.OPEN, is_end_requested=True)
        sessions = list(to_end.order_by().values_list("id", flat=True))
        with self._lock:
            self._sessions_to_end = sessions
        policies = self._policies()
        # Before the servers to be reloaded: who asks for both writes this row last.
        look = HostProcess.objects.filter(id=process_id, look_requested_at__gt=self._looks_seen_through).first()
        reloads = {
            row.name: row.reload_requested_at
            for row in ServerRecord.objects.filter(reload_requested_at__gt=self._reloads_seen_through)
            if row.reload_requested_at is not None
        }
        with self._lock:
            if policies != self._read_policies:
                self._changed_policies = self._read_policies = policies
            self._servers_to_reload |= set(reloads)
            if look is not None:
                self._look_request = look.look_requested_at
        if look is not None and look.look_requested_at is not None:
            self._looks_seen_through = look.look_requested_at
        self._reloads_seen_through = max([self._reloads_seen_through, *reloads.values()])

    def _policies(self) -> dict[str, Policy]:
        """The policy of each server, also of those that are not served now: they may come back at any moment."""
        served = {storable(str(found.folder), 1024) for found in self._registry}
        # If several rows have one name, the last one counts: the folder that is served, or the one loaded last.
        rows = sorted(ServerRecord.objects.only(*_READ_FIELDS), key=lambda row: (row.folder in served, row.loaded_at))
        return {row.name: _policy(row, self._registry.own_call_timeout(row.name)) for row in rows}


def _policy(row: ServerRecord, own_call_timeout: float | None) -> Policy:
    """What the row says, and the limits of the server's manifest and the settings where it says nothing."""
    limits: dict[str, Any] = {
        field: value for field in LIMIT_FIELDS if (value := getattr(row, field)) not in (None, "")
    }
    isolates = None if not row.isolation else row.isolation == "process"
    return replace(default_policy(own_call_timeout), is_enabled=row.is_enabled, isolates=isolates, **limits)
