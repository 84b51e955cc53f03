"""Writes into rows who was refused by which limit, for operators. Not here: counting (`limits`)."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from django.db import InterfaceError, OperationalError, transaction
from django.db.models import F
from django.utils import timezone

from gateway.access.limits import RateLimits, Refusals
from gateway.access.models import MAX_SUBJECT_LENGTH, LimitHit
from gateway.conf import Rule
from gateway.storable import storable

KEPT_DAYS: Final = 30
"""How long a row is kept after the last refusal."""

MAX_ROWS: Final = 10_000
"""How many rows are kept: anybody can cause rows by requests from many addresses."""


def write_refusals(limits: RateLimits) -> bool:
    """Write whom `limits` has refused since the last call. Returns whether there was anything to write.

    Raises `django.db.DatabaseError`. What an outage kept from being written is written by a later call.
    """
    refusals = limits.take_refusals()
    if not refusals:
        return False
    try:
        with transaction.atomic():
            _add(refusals)
            _forget_old()
    except (OperationalError, InterfaceError):
        limits.put_back(refusals)
        raise
    return True


def _add(refusals: Mapping[tuple[Rule, str], Refusals]) -> None:
    for (rule, subject), refused in refusals.items():
        last_at = datetime.fromtimestamp(refused.last_at, UTC)
        hit, is_new = LimitHit.objects.get_or_create(
            rule=rule,
            subject=storable(subject, MAX_SUBJECT_LENGTH),
            defaults={
                "count": refused.count,
                "first_at": datetime.fromtimestamp(refused.first_at, UTC),
                "last_at": last_at,
            },
        )
        if not is_new:
            LimitHit.objects.filter(pk=hit.pk).update(count=F("count") + refused.count, last_at=last_at)


def _forget_old() -> None:
    LimitHit.objects.filter(last_at__lt=timezone.now() - timedelta(days=KEPT_DAYS)).delete()
    newest = LimitHit.objects.order_by("-last_at").values_list("last_at", flat=True)[MAX_ROWS : MAX_ROWS + 1]
    if newest:
        LimitHit.objects.filter(last_at__lte=newest[0]).delete()
