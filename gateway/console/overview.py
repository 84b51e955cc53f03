"""What the admin's first page shows: the figures of the moment, and their past for the plots.

Without JavaScript these are all there is. With it, `overview.js` keeps the page up to date from the endpoint
`endpoints.live_events`. Not here: the figures (`snapshot`), the page's place in the admin (`site`).
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, PermissionsMixin
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.db.models import Max, Sum
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.http import require_safe

from gateway.apps import GatewayConfig
from gateway.console.snapshot import point, take_snapshot
from gateway.host.database_state import database_state
from gateway.records.models import MinuteRecord

PERMISSION: Final = "records.view_overview"
"""What an operator needs."""

MINUTE: Final = 60

RANGES: Final = {"day": (timedelta(days=1), 5), "week": (timedelta(days=7), 30)}
"""Range -> how long it is, and how many minutes one point of its plots stands for."""

LATE_MINUTES: Final = 3
"""How old the newest row of a minute may be."""

TABLE_ROWS: Final = 12
"""About how many points the table beside the plots has."""

Point = list[float | None]
"""Time, calls a second, errors a second, p50, p95 and p99 in milliseconds, sessions, MiB."""


def may_watch(user: AbstractBaseUser | AnonymousUser) -> bool:
    """Whether this user, who may enter the admin, may see what the host does."""
    return isinstance(user, PermissionsMixin) and user.has_perm(PERMISSION)


def overview_of(request: HttpRequest) -> dict[str, Any] | None:
    """What the first page shows; None to operators who may not see it, and in a process that does not serve."""
    host = GatewayConfig.current().host
    if host is None or not may_watch(request.user):
        return None
    points = [point(sample) for sample in host.recorder.history.samples()]
    return {"snapshot": take_snapshot(host), "hour": points, "rows": _table_rows(points)}


@require_safe
def history(request: HttpRequest, name: str) -> HttpResponse:
    """The points of one range, as JSON: `hour` from memory, `day` and `week` from the rows of minutes."""
    host = GatewayConfig.current().host
    if not may_watch(request.user) or host is None:
        raise PermissionDenied
    late = database_state(host.recorder)
    if name == "hour":
        return _points([point(sample) for sample in host.recorder.history.samples()], late)
    if name not in RANGES:
        return JsonResponse({"error": "There is no such range."}, status=404)
    length, minutes = RANGES[name]
    try:
        points = _past(timezone.now() - length, minutes)
    except DatabaseError:
        return JsonResponse({"error": "The history cannot be read now. The live figures go on."}, status=503)
    return _points(points, late)


def _points(points: list[Point], late: str) -> HttpResponse:
    return JsonResponse({"points": points, "late": late}, headers={"Cache-Control": "no-store"})


def _past(since: datetime, minutes: int) -> list[Point]:
    """The points since a moment; each stands for so many minutes of all processes.

    Calls, errors, sessions and memory of the processes are added up. Percentiles cannot be added up: the highest of the
    processes and minutes is shown.
    """
    rows = (
        MinuteRecord.objects.filter(at__gte=since)
        .order_by("at")
        .values_list("at")
        .annotate(
            Sum("calls"),
            Sum("errors"),
            Max("p50_ms"),
            Max("p95_ms"),
            Max("p99_ms"),
            Sum("sessions"),
            Sum("memory_bytes"),
        )
    )
    grouped: dict[float, list[tuple[Any, ...]]] = {}
    step = minutes * MINUTE
    for at, *figures in rows:
        grouped.setdefault(at.timestamp() // step * step, []).append(tuple(figures))
    points: list[Point] = []
    for at, group in grouped.items():
        if points and at - (points[-1][0] or 0) > step:
            # Nothing was written meanwhile: the line ends and begins again.
            points.append([(points[-1][0] or 0) + step, None, None, None, None, None, None, None])
        calls, errors, p50, p95, p99, sessions, memory = zip(*group, strict=True)
        seconds = len(group) * MINUTE
        points.append(
            [
                at,
                round(sum(calls) / seconds, 3),
                round(sum(errors) / seconds, 3),
                _highest(p50),
                _highest(p95),
                _highest(p99),
                max(sessions),
                round(max(memory) / 2**20, 1),
            ]
        )
    return points


def _highest(figures: Iterable[float | None]) -> float | None:
    return max((figure for figure in figures if figure is not None), default=None)


def _table_rows(points: list[Point]) -> list[list[str]]:
    """Some of the points, for a table: the newest first."""
    step = max(1, len(points) // TABLE_ROWS)
    return [
        [
            f"{datetime.fromtimestamp(at or 0, UTC):%H:%M:%S}",
            *("-" if figure is None else f"{figure:g}" for figure in rest),
        ]
        for at, *rest in points[::-1][::step]
    ]
