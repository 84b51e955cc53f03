"""Keeps the keys in memory up to date with their rows: one thread, away from every request.

Lives here: reading the keys in use again twice a second, reporting those that were revoked, and writing when keys were
used and whom a limit refused. Not here: who is let in (`authenticator`).
"""

import logging
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
from gateway.database_thread import DatabaseThread, Outage

logger = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 0.5
"""How often keys in use are read again. With the time that a round takes this is well under `CONFIRMED_SECONDS`."""

IN_USE_SECONDS: Final = 60.0
"""For how long after a request a key counts as in use."""

FORGET_SECONDS: Final = 10.0
"""How often keys that were revoked or not used for long are forgotten."""

USE_SECONDS: Final = 60.0
"""How often the last use of keys is written."""

REFUSAL_SECONDS: Final = 2.0
"""How often the refusals by limits are written."""


class KeyWatch:
    """The thread. `on_revoked` is called in it with the grants that are no longer valid and have something open."""

    def __init__(
        self,
        authenticator: Authenticator,
        store: KeyStore,
        limits: RateLimits,
        on_revoked: Callable[[list[Grant]], object],
    ) -> None:
        self._authenticator = authenticator
        self._store = store
        self._limits = limits
        self._on_revoked = on_revoked
        self._reading = Outage(
            logger, "Keys cannot be checked, requests are refused until they can", "Keys can be checked again"
        )
        self._writing = Outage(
            logger,
            "The last use of keys and the refusals by limits cannot be written",
            "The last use of keys and the refusals by limits are written again",
        )
        self._last_use_write = self._last_refusal_write = self._last_forgetting = time.monotonic()
        self._thread = DatabaseThread("key-watch", self._run_round, self._note_bug, interval_seconds=REFRESH_SECONDS)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Read the rows now: an operator has changed some. May be called from any thread."""
        self._thread.wake()

    def stop(self) -> None:
        """Write what is left and stop. Blocks for a moment: do not call it on an event loop."""
        self._thread.stop()

    def _run_round(self, is_last: bool) -> None:
        self._store.renew()
        if not is_last:
            self._attempt(self.refresh, self._reading)
            self._forget_unused()
        self._attempt(partial(self._write, is_last), self._writing)

    def _attempt(self, work: Callable[[], bool], outage: Outage) -> None:
        """Do `work`, which returns whether there was anything to do: if there was nothing, the outage goes on."""
        try:
            was_needed = work()
        except DatabaseError as error:
            outage.begin(error)
            self._store.disconnect()
            return
        if was_needed:
            outage.end()

    def _forget_unused(self) -> None:
        now = time.monotonic()
        if now - self._last_forgetting >= FORGET_SECONDS:
            self._last_forgetting = now
            self._authenticator.forget_unused()

    def _note_bug(self, error: Exception) -> None:
        logger.error("Keys could not be read again", exc_info=error)

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
        """Read the keys in use again and report those that were revoked. Returns whether there were any to read."""
        grants = self._authenticator.grants_in_use(IN_USE_SECONDS)
        if not grants:
            return False
        started = time.monotonic()
        found = self._store.read(grant.facts.key_id for grant in grants)
        for grant in grants:
            # A key whose row is gone counts as revoked.
            grant.facts = found.get(grant.facts.key_id) or replace(grant.facts, is_active=False)
            grant.confirmed_at = started
        revoked = [grant for grant in grants if grant.is_in_use and not grant.is_valid]
        if revoked:
            self._on_revoked(revoked)
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
