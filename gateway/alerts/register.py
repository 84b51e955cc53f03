"""Begins and ends alerts: one row for each event and subject, while something is wrong.

An alert begins when something has been wrong for a while, and ends when it has been well for a while, so that trouble
that comes and goes is one alert. Used by the lead process, in one thread. If two processes act as the lead for a
moment, a constraint of the table refuses the second row.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

from django.utils import timezone

from gateway.access.models import ApiKey
from gateway.alerts.models import Alert, AlertMessage, AlertNotice, open_alerts
from gateway.alerts.troubles import Condition
from gateway.conf import conf
from gateway.storable import storable

MAX_OPEN: Final = 1000
"""How many alerts may be open at once. Beyond it, no alerts begin."""

MAX_ROWS: Final = 10_000
"""How many past alerts are kept, besides `GUMCP_ALERT_RETENTION_DAYS`."""

_LASTING: Final = frozenset({"server_failed", "server_blocked", "host_degraded"})
"""Events that must last for `GUMCP_ALERT_AFTER_SECONDS` before an alert begins. For others it begins at once."""

_WELL_AT_ONCE: Final = frozenset({"key_expires"})
"""Events whose alerts end at once."""

_ENDINGS: Final[Mapping[str, str]] = {
    "server_failed": "The server {subject} no longer fails to load.",
    "server_blocked": "The server {subject} is no longer blocked.",
    "host_degraded": "The host is well again ({subject}).",
    "many_refusals": "Few requests are refused again.",
}


class Register:
    """Remembers since when each subject is wrong or well again. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._wrong_since: dict[tuple[str, str], float] = {}
        self._well_since: dict[tuple[str, str], float] = {}

    def update(self, conditions: Iterable[Condition], now: float) -> None:
        """Begin and end alerts, as far as it is time. Raises `django.db.DatabaseError`."""
        present = {condition.key: condition for condition in conditions}
        open_now = {(alert.event, alert.subject): alert for alert in open_alerts()}
        self._wrong_since = {key: self._wrong_since.get(key, now) for key in present}
        self._well_since = {key: self._well_since.get(key, now) for key in open_now.keys() - present.keys()}
        new = [
            condition
            for key, condition in present.items()
            if key not in open_now and now - self._wrong_since[key] >= _delay(condition.event)
        ]
        if new:
            self.begin(new[: max(0, MAX_OPEN - len(open_now))])
        ended = [key for key, since in self._well_since.items() if now - since >= _calm(key[0])]
        for key in ended:
            ending = storable(_ending(*key), 200)
            open_alerts().filter(pk=open_now[key].pk).update(ended_at=timezone.now(), ending=ending)

    def begin(self, conditions: Iterable[Condition], began_at: datetime | None = None) -> None:
        """Begin alerts. Those that are open already are left as they are."""
        rows = [
            Alert(
                event=condition.event,
                subject=storable(condition.subject, 255),
                text=storable(condition.text, 500),
                began_at=began_at or timezone.now(),
            )
            for condition in conditions
        ]
        Alert.objects.bulk_create(rows, ignore_conflicts=True)


def expiring_keys() -> list[Condition]:
    """The keys that expire soon, as conditions. Raises `django.db.DatabaseError`."""
    if not conf.alert_key_days:
        return []
    now = timezone.now()
    rows = ApiKey.objects.filter(
        revoked_at=None,
        expires_at__gt=now,
        expires_at__lte=now + timedelta(days=conf.alert_key_days),
        user__is_active=True,
    )
    return [
        Condition(
            "key_expires",
            key.public,
            f"The key {key} of {key.user.get_username()} expires at {key.expires_at:%Y-%m-%d %H:%M} UTC.",
        )
        for key in rows.select_related("user").order_by("expires_at")[:MAX_OPEN]
    ]


def delete_old_rows() -> None:
    """Delete rows of alerts and messages that are too old or too many. Raises `django.db.DatabaseError`."""
    oldest = timezone.now() - timedelta(days=conf.alert_retention_days)
    AlertMessage.objects.filter(finished_at__lt=oldest).delete()
    told = AlertNotice.objects.filter(is_end_told=False, destination__is_enabled=True).values("alert")
    past = Alert.objects.exclude(ended_at=None).exclude(pk__in=told)
    past.filter(ended_at__lt=oldest).delete()
    for began_at in past.order_by("-began_at").values_list("began_at", flat=True)[MAX_ROWS : MAX_ROWS + 1]:
        past.filter(began_at__lte=began_at).delete()


def _delay(event: str) -> float:
    return conf.alert_after_seconds if event in _LASTING else 0.0


def _calm(event: str) -> float:
    return 0.0 if event in _WELL_AT_ONCE else conf.alert_calm_seconds


def _ending(event: str, subject: str) -> str:
    if event != "key_expires":
        return _ENDINGS[event].format(subject=subject)
    key = ApiKey.objects.filter(public=subject).select_related("user").first()
    if key is None:
        return f"The key {subject}… is gone."
    return f"The key {subject}… expires later now." if key.state == "valid" else f"The key {subject}…: {key.state}."
