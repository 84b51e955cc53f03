"""Runs attempts to send messages in threads of their own, so that a slow receiver holds up nobody.

The threads are daemons: the end of the process does not wait for them.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from django.utils import timezone

from gateway import metrics
from gateway.alerts.delivery import DeliveryError, Outgoing, deliver
from gateway.alerts.outbox import is_given_up
from gateway.conf import conf

logger = logging.getLogger(__name__)

MAX_THREADS: Final = 8
"""Attempts at once, including those that were given up and have not returned."""

GIVE_UP_SECONDS: Final = 5.0
"""How long beyond its time an attempt may take before it is given up: a mail server may answer byte by byte."""

Done = Callable[[Outgoing, str], object]
"""Is told how an attempt ended: the message, and why it failed, or an empty text. Called in any thread."""


@dataclass
class _Attempt:
    message: Outgoing
    done: Done
    started: float
    is_over: bool = False


class Sender:
    """The attempts that are under way. May be used from any thread."""

    def __init__(self, send: Callable[[Outgoing], None] = deliver) -> None:
        """`send` sends a message or raises `DeliveryError`."""
        self._send = send
        self._lock = threading.Lock()
        self._attempts: dict[threading.Thread, _Attempt] = {}

    @property
    def busy(self) -> set[int]:
        """The destinations to which a message is under way."""
        with self._lock:
            return {attempt.message.destination_id for attempt in self._attempts.values() if not attempt.is_over}

    @property
    def room(self) -> int:
        """How many attempts may be started now."""
        with self._lock:
            return MAX_THREADS - len(self._attempts)

    def start(self, message: Outgoing, done: Done) -> None:
        """Send a message in a thread. Ask for `room` first."""
        attempt = _Attempt(message, done, time.monotonic())
        thread = threading.Thread(target=self._run, args=(attempt,), name="alert", daemon=True)
        with self._lock:
            self._attempts[thread] = attempt
        thread.start()

    def keep_up(self) -> None:
        """Give up attempts that take too long. Call it regularly."""
        limit = time.monotonic() - conf.alert_send_seconds - GIVE_UP_SECONDS
        with self._lock:
            late = [attempt for attempt in self._attempts.values() if not attempt.is_over and attempt.started < limit]
        for attempt in late:
            self._end(attempt, f"It took longer than {conf.alert_send_seconds:g} s.")

    def _run(self, attempt: _Attempt) -> None:
        error = ""
        try:
            self._send(attempt.message)
        except DeliveryError as failure:
            error = str(failure)
        finally:
            with self._lock:
                del self._attempts[threading.current_thread()]
        self._end(attempt, error)

    def _end(self, attempt: _Attempt, error: str) -> None:
        with self._lock:
            if attempt.is_over:
                return
            attempt.is_over = True
        outcome = "sent" if not error else "given_up" if is_given_up(attempt.message, timezone.now()) else "failed"
        metrics.alert_deliveries.labels(attempt.message.kind, outcome).inc()
        if error:
            logger.warning("An alert could not be sent (attempt %d): %s", attempt.message.attempt, error)
        attempt.done(attempt.message, error)
