"""Asks running hosts to reload servers and to look for new folders, and tells when they have.

The request is a row, because it must reach hosts in other processes than the one where it is made. Each host reads the
rows (`operator_requests`) and notes in its own row which request it has carried out.
"""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from django.db.models import QuerySet
from django.utils import timezone

from gateway.records.models import HostProcess, ServerRecord
from gateway.records.processes import running_hosts


def request_reload(servers: "QuerySet[ServerRecord] | None" = None) -> datetime:
    """Have every running host look for new and removed folders, and reload `servers`. Return the time of the request.

    Raises `django.db.DatabaseError`.
    """
    now = timezone.now()
    if servers is not None:
        servers.update(reload_requested_at=now)
    # Last: a host that sees this one sees the others too.
    running_hosts().update(look_requested_at=now)
    return now


def hosts_that_have_not(request: datetime, hosts: Collection[UUID]) -> "QuerySet[HostProcess]":
    """Those of `hosts` that are running and have not carried out a request."""
    return running_hosts().filter(id__in=hosts).exclude(looked_at__gte=request)
