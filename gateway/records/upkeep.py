"""Upkeep of rows that no living process writes: those of processes that died, those that are too old or too many."""

import os
import socket
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from django.db.models import Count, Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from gateway.conf import conf
from gateway.records.models import HostProcess, InstanceRecord, SessionRecord
from gateway.records.processes import running_hosts
from gateway.records.row_writer import BATCH_SIZE
from gateway.storable import storable

LONGEST_RETENTION_DAYS: Final = 36_500.0
"""Longer times count as this many days: there is no date before the year 1."""


def close_rows_of_dead_processes(own_process_id: UUID) -> None:
    """Mark the sessions of dead processes as lost, and their instances as ended."""
    is_open, is_alive = Q(state__in=SessionRecord.CONNECTED), Q(ended_at=None)
    others = list(
        HostProcess.objects.exclude(id=own_process_id).filter(
            Exists(SessionRecord.objects.filter(is_open, process=OuterRef("pk")))
            | Exists(InstanceRecord.objects.filter(is_alive, process=OuterRef("pk")))
        )
    )
    if not others:
        return
    running = set(running_hosts().values_list("id", flat=True))
    for process in others:
        if process.id not in running or has_ended_here(process):
            process.sessions.filter(is_open).update(
                state=SessionRecord.State.LOST, closed_at=process.last_seen_at, end_reason="its process died"
            )
            process.instances.filter(is_alive).update(ended_at=process.last_seen_at)


def has_ended_here(process: HostProcess) -> bool:
    """Whether a process is known to have ended: on this machine there is no need to wait for its silence."""
    return process.hostname == hostname() and not _is_running(process.pid)


def processes_alive() -> list[HostProcess]:
    """The processes that wrote lately."""
    return list(running_hosts().order_by("started_at"))


def delete_old_rows() -> None:
    """Delete the rows of sessions, instances and processes that ended before the retention time."""
    oldest = timezone.now() - timedelta(days=min(conf.session_retention_days, LONGEST_RETENTION_DAYS))
    SessionRecord.objects.filter(closed_at__lt=oldest).delete()
    InstanceRecord.objects.filter(ended_at__lt=oldest).delete()
    HostProcess.objects.filter(last_seen_at__lt=oldest, sessions=None, instances=None).delete()


def delete_surplus_rows_of(user_ids: Iterable[str]) -> None:
    """Delete the oldest rows of users who have more ended sessions, or instances, than are kept."""
    if conf.max_session_rows_per_user:
        for user_id in user_ids:
            _keep_newest(_ended_sessions().filter(user_id=user_id), "closed_at", conf.max_session_rows_per_user)
            _keep_newest(_ended_instances().filter(user_id=user_id), "ended_at", conf.max_session_rows_per_user)


def delete_surplus_rows() -> None:
    """Delete the oldest rows of all users who have too many, and then those that are too many in all."""
    if conf.max_session_rows_per_user:
        for rows in (_ended_sessions(), _ended_instances()):
            counts = rows.order_by().values("user_id").annotate(count=Count("id"))
            delete_surplus_rows_of(
                counts.filter(count__gt=conf.max_session_rows_per_user).values_list("user_id", flat=True)
            )
    if conf.max_session_rows:
        _keep_newest(_ended_sessions(), "closed_at", conf.max_session_rows)
        _keep_newest(_ended_instances(), "ended_at", conf.max_session_rows)


def _ended_sessions() -> QuerySet[SessionRecord]:
    return SessionRecord.objects.exclude(closed_at=None)


def _ended_instances() -> QuerySet[InstanceRecord]:
    return InstanceRecord.objects.exclude(ended_at=None)


def _keep_newest(rows: "QuerySet[Any]", ended: str, count: int) -> None:
    surplus = list(rows.order_by(f"-{ended}").values_list("id", flat=True)[count:])
    for start in range(0, len(surplus), BATCH_SIZE):
        rows.model.objects.filter(id__in=surplus[start : start + BATCH_SIZE]).delete()


def hostname() -> str:
    """This machine's name, as it stands in the row of a process."""
    return storable(socket.gethostname(), 255)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
