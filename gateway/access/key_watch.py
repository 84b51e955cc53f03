"""Keeps what is in memory of the keys in use in step with their rows: one thread, away from every request.

Lives here: reading them again twice a second, ending what a withdrawn key has open, and writing down when keys were
used and who ran into a limit. Not here: who is let in (`authenticator`).
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from django.db import DatabaseError

from gateway.access.authenticator import Authenticator
from gateway.access.grants import Grant
from gateway.access.limit_hits import write_refusals
from gateway.access.limits import RateLimits
from gateway.access.store import KeyStore

logger = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 0.5
"""How often keys in use are read again; with the time that takes it stays well under `CONFIRMED_SECONDS`."""

IN_USE_SECONDS: Final = 60.0
"""For how long after a request a key counts as in use."""

USE_SECONDS: Final = 60.0
"""How often last uses are written."""

REFUSAL_SECONDS: Final = 2.0
"""How often it is written who ran into a limit."""

STOP_TIMEOUT_SECONDS: Final = 3.0
"""How long the last write may take."""


class _Attempts:
    """Something that is tried again and again with the database, whose failing and recovery are each logged once."""

    def __init__(self, store: KeyStore, on_failure: str, on_recovery: str) -> None:
        self._store = store
        self._on_failure = on_failure
        self._on_recovery = on_recovery
        self._fails = False

    def attempt(self, work: Callable[[], bool]) -> None:
        """Do `work`, which returns whether there was anything to do."""
        try:
            was_needed = work()
        except DatabaseError as error:
            if not self._fails:
                logger.warning("%s: %s", self._on_failure, type(error).__name__)
            self._fails = True
            self._store.disconnect()
            return
        if was_needed and self._fails:
            self._fails = False
            logger.info(self._on_recovery)


class KeyWatch:
    """The thread. `on_withdrawn` is called in it with the grants that are valid no longer and have something open."""

    def __init__(
        self,
        authenticator: Authenticator,
        store: KeyStore,
        limits: RateLimits,
        on_withdrawn: Callable[[list[Grant]], object],
    ) -> None:
        self._authenticator = authenticator
        self._store = store
        self._limits = limits
        self._on_withdrawn = on_withdrawn
        self._reading = _Attempts(
            store, "Keys cannot be checked, requests are refused until they can", "Keys can be checked again"
        )
        self._writing = _Attempts(
            store,
            "When keys were used, and whom limits refused, cannot be written",
            "When keys were used, and whom limits refused, is written again",
        )
        self._last_use_write = self._last_refusal_write = time.monotonic()
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="key-watch", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look at the rows now: something is said to have changed. Any thread."""
        self._wake.set()

    def stop(self) -> None:
        """Write what is left, for at most `STOP_TIMEOUT_SECONDS`, and stop."""
        if self._thread is not None:
            self._is_stopping = True
            self._wake.set()
            self._thread.join(STOP_TIMEOUT_SECONDS)
            self._thread = None

    def _run(self) -> None:
        while True:
            is_last = self._is_stopping
            self._wake.clear()
            try:
                self._store.renew()
                if not is_last:
                    self._reading.attempt(self.refresh)
                    self._authenticator.forget_unused()
                self._writing.attempt(partial(self._write, is_last))
            except Exception:  # the thread must live on: without it every request looks its key up
                logger.exception("Keys could not be read again")
            if is_last:
                self._store.disconnect()
                return
            self._wake.wait(REFRESH_SECONDS)

    def _write(self, is_last: bool) -> bool:
        now = time.monotonic()
        has_written = False
        if is_last or now - self._last_use_write >= USE_SECONDS:
            self._last_use_write = now
            has_written |= self._write_uses()
        if is_last or now - self._last_refusal_write >= REFUSAL_SECONDS:
            self._last_refusal_write = now
            has_written |= write_refusals(self._limits)
        return has_written

    def refresh(self) -> bool:
        """Read the keys in use again, and report those that were withdrawn. Returns whether there were any to read."""
        grants = self._authenticator.grants_in_use(IN_USE_SECONDS)
        if not grants:
            return False
        started = time.monotonic()
        found = self._store.read(grant.facts.key_id for grant in grants)
        for grant in grants:
            # A row that is gone is a key that is withdrawn.
            grant.facts = found.get(grant.facts.key_id) or replace(grant.facts, is_active=False)
            grant.confirmed_at = started
        withdrawn = [grant for grant in grants if grant.is_in_use and not grant.is_valid]
        if withdrawn:
            self._on_withdrawn(withdrawn)
        return True

    def _write_uses(self) -> bool:
        grants = [
            grant
            for grant in self._authenticator.grants_in_use(USE_SECONDS * 2)
            if grant.last_used // 60 > grant.written_use // 60
        ]
        uses = {grant.facts.key_id: grant.last_used for grant in grants}
        self._store.write_uses(uses)
        for grant in grants:
            grant.written_use = uses[grant.facts.key_id]
        return bool(uses)
