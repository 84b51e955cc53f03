"""Tells of a database that cannot be used. No row can be read or written then, so all of this is in memory.

When the database can be used again, the alert gets its row, with a notice for each destination that was told. From then
on it is an alert like others, and ends like others.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID, uuid4

from django.db.models import Q
from django.utils import timezone

from gateway.alerts import outbox
from gateway.alerts.delivery import Outgoing
from gateway.alerts.models import Alert, AlertDestination, AlertMessage, AlertNotice, open_alerts
from gateway.alerts.register import Register
from gateway.alerts.sender import Sender
from gateway.alerts.troubles import OF_DATABASE, Condition, degraded_by_database

EVENT: Final = "host_degraded"


@dataclass
class _Telling:
    """What one destination was told of this outage."""

    message_id: UUID = field(default_factory=uuid4)
    """The same for every attempt, so that a receiver can refuse repetitions."""
    attempts: int = 0
    next_attempt: float = 0.0
    """Monotonic seconds."""
    is_told: bool = False


class OutageTelling:
    """The outage of the database, as far as destinations are told of it. May be used from any thread."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._lock = threading.Lock()
        self._destinations: list[AlertDestination] = []
        self._tellings: dict[int, _Telling] = {}
        self._condition: Condition | None = None
        self._began_at: datetime | None = None

    def learn(self, destinations: Iterable[AlertDestination]) -> None:
        """Remember who wants to hear of an outage, while the database can still be asked."""
        wanting = [found for found in destinations if found.wants(EVENT, OF_DATABASE)]
        with self._lock:
            self._destinations = wanting

    def tell(self, cause: str) -> None:
        """Tell those who have not been told. `cause`: a part of a sentence. Call it regularly while it lasts."""
        now = time.monotonic()
        with self._lock:
            if self._condition is None:
                self._condition = Condition(EVENT, OF_DATABASE, degraded_by_database(cause))
                self._began_at = timezone.now()
            due = [
                (found, telling)
                for found in self._destinations
                if not (telling := self._tellings.setdefault(found.pk, _Telling())).is_told
                and telling.next_attempt <= now
            ]
        for destination, telling in due:
            if self._sender.room and destination.pk not in self._sender.busy:
                self._sender.start(self._message(destination, telling), self._note)

    def _message(self, destination: AlertDestination, telling: _Telling) -> Outgoing:
        assert self._condition is not None
        assert self._began_at is not None
        # These rows are never written.
        alert = Alert(
            event=self._condition.event,
            subject=self._condition.subject,
            text=self._condition.text,
            began_at=self._began_at,
        )
        message = AlertMessage(
            id=telling.message_id,
            items=[outbox.item_of(alert)],
            created_at=self._began_at,
            attempts=telling.attempts,
        )
        return outbox.outgoing(destination, message)

    def _note(self, message: Outgoing, error: str) -> None:
        with self._lock:
            if message.created_at != self._began_at:
                # That outage is over. The next one must be told to everybody.
                return
            telling = self._tellings.setdefault(message.destination_id, _Telling())
            telling.attempts += 1
            telling.is_told = not error
            telling.next_attempt = time.monotonic() + outbox.retry_seconds(telling.attempts)

    def end(self, register: Register) -> None:
        """Write the row of an outage that is over, if there was one. Raises `django.db.DatabaseError`."""
        with self._lock:
            condition, began_at = self._condition, self._began_at
            told = [pk for pk, telling in self._tellings.items() if telling.is_told]
        if condition is None:
            return
        if told:
            register.begin([condition], began_at)
            alert = open_alerts().get(event=EVENT, subject=OF_DATABASE)
            rows = AlertDestination.objects.filter(~Q(notices__alert=alert), pk__in=told)
            AlertNotice.objects.bulk_create([AlertNotice(alert=alert, destination=found) for found in rows])
        with self._lock:
            self._condition = self._began_at = None
            self._tellings.clear()
