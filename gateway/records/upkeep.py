"""Upkeep of rows that no living process writes: those of processes that died, and those that are too old."""

import os
import socket
from datetime import timedelta
from typing import Final
from uuid import UUID

from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from gateway.conf import conf
from gateway.records.models import DEAD_AFTER_SECONDS, HostProcess, InstanceRecord, SessionRecord
from gateway.storable import storable

LONGEST_RETENTION_DAYS: Final = 36_500.0
"""Longer times count as this many days: there is no date before the year 1."""


def close_rows_of_dead_processes(own_process_id: UUID) -> None:
    """Mark the sessions of dead processes as lost, and their instances as ended."""
    is_open, is_alive = Q(state=SessionRecord.State.OPEN), Q(ended_at=None)
    silent_since = timezone.now() - timedelta(seconds=DEAD_AFTER_SECONDS)
    others = HostProcess.objects.exclude(id=own_process_id).filter(
        Exists(SessionRecord.objects.filter(is_open, process=OuterRef("pk")))
        | Exists(InstanceRecord.objects.filter(is_alive, process=OuterRef("pk")))
    )
    for process in others:
        # On this machine there is no need to wait for the silence.
        is_here = process.hostname == hostname()
        if process.last_seen_at < silent_since or (is_here and not _is_running(process.pid)):
            process.sessions.filter(is_open).update(
                state=SessionRecord.State.LOST, closed_at=process.last_seen_at, end_reason="its process died"
            )
            process.instances.filter(is_alive).update(ended_at=process.last_seen_at)


def delete_old_rows() -> None:
    """Delete the rows of sessions, instances and processes that ended before the retention time."""
    oldest = timezone.now() - timedelta(days=min(conf.session_retention_days, LONGEST_RETENTION_DAYS))
    SessionRecord.objects.filter(closed_at__lt=oldest).delete()
    InstanceRecord.objects.filter(ended_at__lt=oldest).delete()
    HostProcess.objects.filter(last_seen_at__lt=oldest, sessions=None, instances=None).delete()


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
