"""Messages about alerts, as rows: writes them, selects those to send now, and notes how each attempt ended.

A destination gets its messages in order, one at a time: while one cannot be sent, the later ones wait. At the limit of
messages an hour, alerts wait too, and are sent together in one message later. A message and the notices of its alerts
are written in one transaction, so two processes never send the same. A process that sends a message reserves it for a
while. If the process dies meanwhile, another one sends the message again, with the same id.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from gateway.alerts.delivery import Item, Outgoing
from gateway.alerts.models import Alert, AlertDestination, AlertMessage, AlertNotice, open_alerts
from gateway.conf import conf

MAX_ITEMS: Final = 50
"""Alerts in one message. The others come with the next one."""

RETRY_SECONDS: Final = (10, 30, 60, 300, 900, 1800, 3600)
"""How long a message waits after each attempt that failed; the last one counts for all further ones."""

LEASE_MARGIN_SECONDS: Final = 30.0
"""How much longer than an attempt may take a message is reserved for its process."""


def write_messages(destinations: Iterable[AlertDestination]) -> None:
    """Write messages about what these destinations have not been told. Raises `django.db.DatabaseError`."""
    told: defaultdict[int, set[int]] = defaultdict(set)
    has_end: set[int] = set()
    of_now = AlertNotice.objects.filter(Q(alert__ended_at=None) | Q(is_end_told=False))
    for destination_id, alert_id, ended_at in of_now.values_list("destination_id", "alert_id", "alert__ended_at"):
        told[destination_id].add(alert_id)
        if ended_at is not None:
            has_end.add(destination_id)
    alerts = list(open_alerts())
    for destination in destinations:
        news = [alert for alert in alerts if destination.wants(alert.event, alert.subject)]
        if destination.pk in has_end or any(alert.pk not in told[destination.pk] for alert in news):
            _write_message(destination)


def _write_message(destination: AlertDestination) -> None:
    with transaction.atomic():
        # Another process may be doing the same. Everything below is read after it has finished.
        locked = AlertDestination.objects.select_for_update().filter(pk=destination.pk, is_enabled=True).first()
        if locked is None or _is_at_limit(locked):
            return
        ended = list(
            AlertNotice.objects.filter(destination=locked, is_end_told=False)
            .exclude(alert__ended_at=None)
            .select_related("alert")
            .order_by("alert__ended_at")[:MAX_ITEMS]
        )
        unheard = open_alerts().exclude(notices__destination=locked).order_by("began_at", "id")
        begun = [alert for alert in unheard if locked.wants(alert.event, alert.subject)][: MAX_ITEMS - len(ended)]
        if not ended and not begun:
            return
        items = [*(item_of(notice.alert) for notice in ended), *(item_of(alert) for alert in begun)]
        AlertMessage.objects.create(destination=locked, items=items)
        AlertNotice.objects.filter(pk__in=[notice.pk for notice in ended]).update(is_end_told=True)
        AlertNotice.objects.bulk_create([AlertNotice(alert=alert, destination=locked) for alert in begun])


def _is_at_limit(destination: AlertDestination) -> bool:
    hour = timezone.now() - timedelta(hours=1)
    written = AlertMessage.objects.filter(destination=destination, is_test=False, created_at__gt=hour)
    return written.count() >= conf.max_alerts_per_hour


def item_of(alert: Alert) -> Item:
    """An alert as a message has it."""
    state: Literal["begun", "ended"] = "begun" if alert.ended_at is None else "ended"
    return {
        "id": alert.pk,
        "event": alert.event,
        "state": state,
        "subject": alert.subject,
        "text": alert.text if state == "begun" else f"Over: {alert.ending}",
        "began_at": _iso(alert.began_at),
        "ended_at": None if alert.ended_at is None else _iso(alert.ended_at),
    }


def write_test(destination: AlertDestination) -> None:
    """Write a test message. Raises `django.db.DatabaseError`."""
    item: Item = {
        "id": None,
        "event": "test",
        "state": "test",
        "subject": destination.name,
        "text": "This is a test. Nothing is wrong.",
        "began_at": _iso(timezone.now()),
        "ended_at": None,
    }
    AlertMessage.objects.create(destination=destination, is_test=True, items=[item])


def take_due(busy: Collection[int], room: int) -> list[Outgoing]:
    """Take the messages that are to be sent now: at most `room`, and none to destinations that are `busy`.

    Raises `django.db.DatabaseError`.
    """
    now = timezone.now()
    heads: dict[int, AlertMessage] = {}
    waiting = AlertMessage.objects.filter(state=AlertMessage.State.WAITING, destination__is_enabled=True)
    # Items are read only for messages that are taken: many may be waiting, and this is called every second.
    for message in waiting.defer("items").select_related("destination").order_by("created_at", "id"):
        heads.setdefault(message.destination_id, message)
    taken: list[Outgoing] = []
    for message in heads.values():
        if len(taken) >= room:
            break
        if message.next_attempt_at > now or message.destination_id in busy:
            continue
        lease = now + timedelta(seconds=conf.alert_send_seconds + LEASE_MARGIN_SECONDS)
        mine = waiting.filter(pk=message.pk, next_attempt_at=message.next_attempt_at)
        if mine.update(next_attempt_at=lease, attempts=F("attempts") + 1):
            taken.append(outgoing(message.destination, message))
    return taken


def outgoing(destination: AlertDestination, message: AlertMessage) -> Outgoing:
    """A message and its destination, as `delivery` needs them."""
    return Outgoing(
        message_id=message.id,
        destination_id=destination.pk,
        kind=destination.kind,
        url=destination.url,
        addresses=destination.address_list,
        salt=destination.salt,
        items=message.items,
        created_at=message.created_at,
        attempt=message.attempts + 1,
        is_test=message.is_test,
    )


def note_result(message: Outgoing, error: str) -> None:
    """Note how an attempt ended. `error`: why it failed; empty if it did not. Raises `django.db.DatabaseError`."""
    now = timezone.now()
    row = AlertMessage.objects.filter(pk=message.message_id, state=AlertMessage.State.WAITING)
    destination = AlertDestination.objects.filter(pk=message.destination_id)
    if not error:
        row.update(state=AlertMessage.State.SENT, finished_at=now, error="")
        destination.update(last_sent_at=now, last_error="")
        return
    if is_given_up(message, now):
        row.update(state=AlertMessage.State.GIVEN_UP, finished_at=now, error=error)
    else:
        row.update(next_attempt_at=now + timedelta(seconds=retry_seconds(message.attempt)), error=error)
    destination.update(last_error=error)


def is_given_up(message: Outgoing, now: datetime) -> bool:
    """Whether a message that failed is not tried again: a test never is, others for `GUMCP_ALERT_RETRY_SECONDS`."""
    return message.is_test or now - message.created_at >= timedelta(seconds=conf.alert_retry_seconds)


def retry_seconds(attempt: int) -> float:
    """How long to wait after this number of attempts."""
    return RETRY_SECONDS[min(attempt, len(RETRY_SECONDS)) - 1]


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
