"""The keys that are kept in memory, and the look-up of those that are not.

A key may be used from memory while its row confirmed it less than `CONFIRMED_SECONDS` ago. The watch (`key_watch`)
confirms the keys in use twice a second, so that their requests never wait for a database. If it cannot, each request
looks its key up, and is answered 503 if that fails too. So a revoked key is refused after two seconds in any case.

Keys are kept as digests, never as text. Not here: the rows (`store`), who may call (`authenticator`).
"""

import asyncio
import hmac
import threading
import time
from functools import partial
from typing import Final, Protocol
from weakref import WeakValueDictionary

from django.db import DatabaseError

from gateway.access.grants import Grant, KeyFacts
from gateway.access.keys import public_part
from gateway.access.limits import RateLimits
from gateway.bounded_jobs import BoundedJobs
from gateway.exceptions import AuthenticationUnavailable

CONFIRMED_SECONDS: Final = 2.0
"""How long a key is good without another look at its row. Revocation takes no longer."""

MAX_KNOWN_KEYS: Final = 10_000
"""How many good keys are kept; beyond it the one that was added first is forgotten."""

FORGET_SECONDS: Final = 600.0
"""How long a key is kept after its last request."""

MAX_LOOK_UPS: Final = 200
"""How many look-ups may wait at once; beyond it 503."""

LOOK_UP_SECONDS: Final = 5.0
"""How long a look-up may take; beyond it 503."""

_UNAVAILABLE: Final = "Keys cannot be checked now. Try again later."


class Store(Protocol):
    """Where keys are looked up."""

    def look_up(self, public: str) -> KeyFacts | None:
        """The key with this public part. Raises `django.db.DatabaseError`."""

    def renew(self) -> None:
        """Make sure that this thread's connection leads to the database that is there now."""

    def disconnect(self) -> None:
        """Close this thread's connection."""


class KnownKeys:
    """Good keys by their digest.

    Threads: used on the host's loop, except the methods that say otherwise; `_lock` guards what they share.
    """

    def __init__(self, store: Store, limits: RateLimits) -> None:
        self._store = store
        self._limits = limits
        self._lock = threading.Lock()
        self._by_digest: dict[bytes, Grant] = {}
        self._by_id: WeakValueDictionary[int, Grant] = WeakValueDictionary()
        """All grants that something uses, also those that were forgotten meanwhile."""
        self._looking_up: dict[bytes, asyncio.Task[Grant | None]] = {}
        # Fails closed, whatever the cause: the database, its absence, a thread that cannot be started.
        self._look_ups = BoundedJobs(
            "key-look-up",
            threads=1,
            max_waiting=MAX_LOOK_UPS,
            seconds=LOOK_UP_SECONDS,
            refusal=partial(AuthenticationUnavailable, _UNAVAILABLE),
        )

    def get(self, digest: bytes) -> Grant | None:
        """The grant of the key with this digest, as far as it is in memory. It may need to be confirmed."""
        return self._by_digest.get(digest)

    async def look_up(self, key: str, digest: bytes) -> Grant | None:
        """The grant of a well-formed key, from its row; None if there is no such key.

        Raises:
            AuthenticationUnavailable: the row cannot be read.
        """
        looking_up = self._looking_up.get(digest)
        if looking_up is None:
            looking_up = self._looking_up[digest] = asyncio.create_task(self._look_up(public_part(key), digest))
            looking_up.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Shielded: others may be waiting for the same key when this caller leaves.
        return await asyncio.shield(looking_up)

    async def find(self, public: str) -> Grant | None:
        """The grant of a valid key, by its public part; None if there is no such key.

        This proves nothing about who asks: it is for operators, who are known already.

        Raises:
            AuthenticationUnavailable: the row cannot be read.
        """
        started = time.monotonic()
        facts = await self._read_in_thread(public)
        grant = None if facts is None else self._adopt(facts, started)
        return grant if grant is not None and grant.is_valid else None

    def grants_in_use(self, seconds: float) -> list[Grant]:
        """The grants that were used in the last `seconds` or have something open. May be called from any thread."""
        oldest = time.time() - seconds
        with self._lock:
            grants = list(self._by_id.values())
        return [grant for grant in grants if grant.last_used >= oldest or grant.requests or grant.is_in_use]

    def forget_unused(self) -> None:
        """Forget keys that were revoked or not used for long. May be called from any thread."""
        oldest = time.time() - FORGET_SECONDS
        with self._lock:
            for digest, grant in list(self._by_digest.items()):
                if grant.last_used < oldest or not grant.is_valid:
                    del self._by_digest[digest]

    def is_kept(self, grant: Grant) -> bool:
        """Whether the key is in memory. May be called from any thread."""
        return grant.facts.digest in self._by_digest

    def close(self) -> None:
        """Let the look-up thread end."""
        self._look_ups.close(self._store.disconnect)

    async def _look_up(self, public: str, digest: bytes) -> Grant | None:
        started = time.monotonic()
        try:
            facts = await self._read_in_thread(public)
        finally:
            del self._looking_up[digest]
        known = facts.digest if facts is not None else bytes(len(digest))
        if not hmac.compare_digest(known, digest) or facts is None:
            return None
        grant = self._adopt(facts, started)
        if grant.is_valid:
            with self._lock:
                if len(self._by_digest) >= MAX_KNOWN_KEYS and digest not in self._by_digest:
                    del self._by_digest[next(iter(self._by_digest))]
                self._by_digest[digest] = grant
        return grant

    async def _read_in_thread(self, public: str) -> KeyFacts | None:
        return await self._look_ups.run(lambda: self._read(public))

    def _read(self, public: str) -> KeyFacts | None:
        self._store.renew()
        try:
            return self._store.look_up(public)
        except DatabaseError:
            self._store.disconnect()
            raise

    def _adopt(self, facts: KeyFacts, confirmed_at: float) -> Grant:
        with self._lock:
            grant = self._by_id.get(facts.key_id)
            if grant is None:
                grant = Grant(facts, confirmed_at, self._limits)
                self._by_id[facts.key_id] = grant
            elif confirmed_at >= grant.confirmed_at:
                grant.facts, grant.confirmed_at = facts, confirmed_at
            return grant


def is_confirmed(grant: Grant) -> bool:
    """Whether the row confirmed the key recently enough to use it from memory."""
    return time.monotonic() - grant.confirmed_at < CONFIRMED_SECONDS
