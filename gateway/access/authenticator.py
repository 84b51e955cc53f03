"""The door: from a request's path and its Authorization header to the identity that is calling, or to a refusal.

Lives here: where a key may stand, what is remembered of keys that were good, and the limits at the door. Not here: the
rows (`store`), keeping memory in step with them (`key_watch`), scopes inside a server (`tool_scope`).

What may be trusted from memory, and for how long: a key that the rows confirmed less than `CONFIRMED_SECONDS` ago. The
watch confirms the keys in use twice a second, so that none of their requests waits for a database; if it cannot, each
request looks the key up, and is answered 503 where that fails too. So a revoked key is refused after two seconds
whatever happens.
"""

import asyncio
import hmac
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, Literal, Protocol
from weakref import WeakValueDictionary

from django.db import DatabaseError

from gateway import signals
from gateway.access.grants import Grant, KeyFacts
from gateway.access.identity import Identity, parse_session_key
from gateway.access.keys import is_well_formed, key_digest, public_part
from gateway.access.limits import RateLimits
from gateway.access.owned import OwnedSession
from gateway.exceptions import (
    AuthenticationUnavailable,
    InvalidSessionKey,
    OutOfScope,
    TooManyRequests,
    Unauthenticated,
)
from gateway.http.addresses import counted_address

Mode = Literal["open", "keys"]

CONFIRMED_SECONDS: Final = 2.0
"""How long a key is good without looking at its row again. Revocation takes no longer."""

MAX_REMEMBERED_KEYS: Final = 10_000
"""How many good keys are remembered; the one that was remembered first is forgotten for one more."""

FORGET_SECONDS: Final = 600.0
"""After how long without a request a key is forgotten."""

MAX_LOOK_UPS: Final = 200
"""How many look-ups may wait at once; beyond it 503."""

LOOK_UP_SECONDS: Final = 5.0
"""How long a look-up may take; beyond it 503."""

REFUSALS_PER_SECOND: Final = 500
"""How many requests beyond its limit of failures one address is answered in a second, while no more wait than may."""

MAX_WAITING_REFUSALS: Final = 250
"""How many of them wait for a turn of their own, which is half a second away at most: a neighbour behind the same
address may have mistyped a key. What comes meanwhile waits for that half second and takes no turn: each connection more
than this is answered twice a second at most, and how many there are is for `GUMCP_MAX_CONNECTIONS_PER_ADDRESS`."""

SESSION_RETRY_SECONDS: Final = 10
"""When to try again where too many sessions are open: nobody knows when one ends."""

_UNAVAILABLE: Final = "Keys cannot be checked now. Try again later."


class Store(Protocol):
    """Where keys are looked up."""

    def look_up(self, public: str) -> KeyFacts | None:
        """The key with this public part. Raises `django.db.DatabaseError`."""

    def renew(self) -> None:
        """See that this thread's connection is to the database that is there now."""

    def disconnect(self) -> None:
        """Close this thread's connection."""


class Authenticator:
    """Knows who is calling. Used on the host's loop; what the watch's thread may call is marked."""

    def __init__(
        self,
        mode: Mode,
        store: Store,
        limits: RateLimits,
        *,
        max_sessions_of_key: int = 0,
        max_sessions_of_address: int = 0,
        hides_keys: bool = False,
    ) -> None:
        """A limit of 0 is none. `hides_keys`: servers' modules get None in place of a key."""
        self.mode: Mode = mode
        self.limits = limits
        self._store = store
        self._max_sessions_of_key = max_sessions_of_key
        self._max_sessions_of_address = max_sessions_of_address
        self._hides_keys = hides_keys
        self._remembered: dict[bytes, Grant] = {}
        self._callers: dict[tuple[str | None, bytes | None], Identity] = {}
        """What was presented -> who that is, of keys in `_remembered`."""
        self._grants: WeakValueDictionary[int, Grant] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._looking_up: dict[bytes, asyncio.Task[Grant | None]] = {}
        self._executor = ThreadPoolExecutor(1, "key-look-up")
        self._turns: dict[str, float] = {}
        """When an address is next told that it has failed too often (monotonic seconds)."""
        self._sessions_of_address: Counter[str] = Counter()
        """Listeners included, as in `Grant.sessions`."""
        self.listeners = 0
        """How many requests listen, in both modes: each takes the room of a session."""

    @property
    def checks_keys(self) -> bool:
        """Whether a caller needs a key."""
        return self.mode == "keys"

    async def identify(
        self, headers: list[tuple[bytes, bytes]], address: str, server_name: str, session_key: str | None
    ) -> Identity:
        """Find out who is calling `server_name`.

        `session_key` is the URL's segment as it was written, None for the URL without one.

        Raises:
            InvalidSessionKey: open mode; the segment names no user.
            Unauthenticated: there is no valid key, or not this user's.
            OutOfScope: the key is not for this server.
            TooManyRequests: the key or the address has used up a limit.
            AuthenticationUnavailable: the key could not be checked.
        """
        if self.mode == "open":
            return parse_session_key(session_key or "")
        subject = counted_address(address)
        authorization = _authorization(headers)
        identity = self._known_caller(session_key, authorization)
        if identity is None:
            identity = await self._check(session_key, authorization, subject)
        grant = identity.grant
        assert grant is not None
        grant.last_used = time.time()
        # Only of requests with a good key: a neighbour's bad ones use up nothing of theirs.
        await self._spend("requests of an address", subject)
        await self._spend("requests of a key", grant.public)
        if not grant.allows_server(server_name):
            raise OutOfScope("This key is not for this server.")
        return identity

    def require_room(self, identity: Identity, address: str) -> None:
        """Check that `identity` may open one more session, or listener. To be called in the step that opens it.

        Raises:
            Unauthenticated: the key was revoked in the meantime.
            TooManyRequests: the key or the address has as many as it may.
        """
        grant = identity.grant
        if grant is None:
            return
        if not grant.is_valid:
            raise Unauthenticated
        if self._max_sessions_of_key and grant.sessions >= self._max_sessions_of_key:
            self.limits.note_refusal("sessions of a key", grant.public)
            raise TooManyRequests("This key has as many sessions open as it may.", SESSION_RETRY_SECONDS)
        subject = counted_address(address)
        if self._max_sessions_of_address and self._sessions_of_address[subject] >= self._max_sessions_of_address:
            self.limits.note_refusal("sessions of an address", subject)
            raise TooManyRequests("This address has as many sessions open as it may.", SESSION_RETRY_SECONDS)

    def start(self) -> None:
        """Start to count sessions."""
        signals.session_opened.connect(self._on_session_opened)
        signals.session_closed.connect(self._on_session_closed)

    @contextmanager
    def listening(self, identity: Identity, address: str) -> Iterator[None]:
        """Count a stateless request that goes on until somebody ends it like a session, inside the block."""
        self.listeners += 1
        self._count(identity, address, 1)
        try:
            yield
        finally:
            self.listeners -= 1
            self._count(identity, address, -1)

    def _on_session_opened(self, session: OwnedSession, **_: Any) -> None:
        self._count(session.identity, session.address, 1)

    def _on_session_closed(self, session: OwnedSession, **_: Any) -> None:
        self._count(session.identity, session.address, -1)

    def _count(self, identity: Identity, address: str, change: Literal[1, -1]) -> None:
        grant = identity.grant
        if grant is not None:
            grant.sessions += change
            subject = counted_address(address)
            self._sessions_of_address[subject] += change
            if self._sessions_of_address[subject] <= 0:
                del self._sessions_of_address[subject]

    # -- For the watch, in its thread --------------------------------------------------------------------------------

    def grants_in_use(self, seconds: float) -> list[Grant]:
        """The grants that were used in the last `seconds`, or have a request or something else open. Any thread."""
        oldest = time.time() - seconds
        with self._lock:
            grants = list(self._grants.values())
        return [grant for grant in grants if grant.last_used >= oldest or grant.requests or grant.is_in_use]

    def forget_unused(self) -> None:
        """Forget keys that were revoked or not used for long. May be called from any thread."""
        oldest = time.time() - FORGET_SECONDS
        with self._lock:
            for digest, grant in list(self._remembered.items()):
                if grant.last_used < oldest or not grant.is_valid:
                    del self._remembered[digest]
            for presented, identity in list(self._callers.items()):
                grant_of_caller = identity.grant
                if grant_of_caller is None or grant_of_caller.last_used < oldest or not grant_of_caller.is_valid:
                    del self._callers[presented]

    def close(self) -> None:
        """Let the look-up thread go."""
        signals.session_opened.disconnect(self._on_session_opened)
        signals.session_closed.disconnect(self._on_session_closed)
        self._executor.submit(self._store.disconnect)
        self._executor.shutdown(wait=False)
        self.limits.close()

    # -- Inside ------------------------------------------------------------------------------------------------------

    def _known_caller(self, session_key: str | None, authorization: bytes | None) -> Identity | None:
        """Who called with exactly this before, if that still holds: most requests, in a third of the time."""
        identity = self._callers.get((session_key, authorization))
        if identity is None or identity.grant is None:
            return None
        grant = identity.grant
        is_confirmed = time.monotonic() - grant.confirmed_at < CONFIRMED_SECONDS
        return identity if is_confirmed and grant.is_valid and grant.facts.user_id == identity.user_id else None

    async def _check(self, session_key: str | None, authorization: bytes | None, subject: str) -> Identity:
        presented = _presented_key(session_key, authorization)
        if presented is None:
            raise await self._refusal(subject)
        user_id, key = presented
        grant = await self._find(key, subject)
        if grant is None:
            raise await self._refusal(subject)
        facts = grant.facts
        is_owner = user_id is None or hmac.compare_digest(user_id.encode(), facts.user_id.encode())
        # No `and` before both are known: the same work whatever was wrong.
        if not (is_owner & grant.is_valid):
            raise await self._refusal(subject)
        identity = Identity(facts.user_id, key, grant)
        with self._lock:
            if len(self._callers) >= MAX_REMEMBERED_KEYS:
                del self._callers[next(iter(self._callers))]
            self._callers[session_key, authorization] = identity
        return identity

    async def _find(self, key: str, subject: str) -> Grant | None:
        if not is_well_formed(key):
            return None
        digest = key_digest(key)
        grant = self._remembered.get(digest)
        if grant is not None and time.monotonic() - grant.confirmed_at < CONFIRMED_SECONDS:
            return grant
        if grant is None and (seconds := self.limits.is_spent("failed keys", subject)) is not None:
            # Who guesses costs no look-ups; who has called with a good key before is not shut out by a neighbour.
            raise await self._paced(subject, seconds)
        looking_up = self._looking_up.get(digest)
        if looking_up is None:
            if len(self._looking_up) >= MAX_LOOK_UPS:
                raise AuthenticationUnavailable(_UNAVAILABLE)
            looking_up = self._looking_up[digest] = asyncio.create_task(self._look_up(public_part(key), digest))
            looking_up.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Shielded: others may be waiting for the same key when this caller leaves.
        return await asyncio.shield(looking_up)

    async def _look_up(self, public: str, digest: bytes) -> Grant | None:
        started = time.monotonic()
        try:
            async with asyncio.timeout(LOOK_UP_SECONDS):
                facts = await asyncio.get_running_loop().run_in_executor(self._executor, self._read, public)
        # Fails closed, whatever it was: the database, its absence, a thread that cannot be started.
        except Exception as error:
            raise AuthenticationUnavailable(_UNAVAILABLE) from error
        finally:
            del self._looking_up[digest]
        known = facts.digest if facts is not None else bytes(len(digest))
        if not hmac.compare_digest(known, digest) or facts is None:
            return None
        grant = self._adopt(facts, started)
        if grant.is_valid:
            with self._lock:
                if len(self._remembered) >= MAX_REMEMBERED_KEYS and digest not in self._remembered:
                    del self._remembered[next(iter(self._remembered))]
                self._remembered[digest] = grant
        return grant

    def _read(self, public: str) -> KeyFacts | None:
        self._store.renew()
        try:
            return self._store.look_up(public)
        except DatabaseError:
            self._store.disconnect()
            raise

    def _adopt(self, facts: KeyFacts, confirmed_at: float) -> Grant:
        with self._lock:
            grant = self._grants.get(facts.key_id)
            if grant is None:
                grant = Grant(facts, confirmed_at, self.limits, is_hidden=self._hides_keys)
                self._grants[facts.key_id] = grant
            elif confirmed_at >= grant.confirmed_at:
                grant.facts, grant.confirmed_at = facts, confirmed_at
            return grant

    async def _refusal(self, subject: str) -> Unauthenticated | TooManyRequests:
        seconds = await self.limits.spend("failed keys", subject)
        return Unauthenticated() if seconds is None else await self._paced(subject, seconds)

    async def _paced(self, subject: str, seconds: int) -> TooManyRequests:
        """Refuse an address at a bounded rate: however quickly it guesses, the others get most of the loop.

        Turns are taken no further ahead than `MAX_WAITING_REFUSALS`; who finds them taken waits as long as the last.
        """
        now = time.monotonic()
        turn = max(now, self._turns.get(subject, now))
        if len(self._turns) >= MAX_REMEMBERED_KEYS:
            self._turns = {paced: later for paced, later in self._turns.items() if later > now}
        longest = MAX_WAITING_REFUSALS / REFUSALS_PER_SECOND
        if turn - now < longest:
            self._turns[subject] = turn + 1 / REFUSALS_PER_SECOND
        await asyncio.sleep(min(turn - now, longest))
        return TooManyRequests("Too many requests with keys that are not valid.", seconds)

    async def _spend(self, rule: Literal["requests of a key", "requests of an address"], subject: str) -> None:
        seconds = await self.limits.spend(rule, subject)
        if seconds is not None:
            raise TooManyRequests("Too many requests.", seconds)


def _authorization(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """The Authorization header; several become what is no credential."""
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            found = value if found is None else b"%b, %b" % (found, value)
    return found


def _presented_key(session_key: str | None, authorization: bytes | None) -> tuple[str | None, str] | None:
    """The user id that the path names, if any, and the key; None where there is no one key."""
    bearer = None if authorization is None else _bearer_key(authorization)
    if authorization is not None and bearer is None:
        return None
    if session_key is None:
        return None if bearer is None else (None, bearer)
    try:
        written = parse_session_key(session_key)
    except InvalidSessionKey:
        return None
    key = written.api_key or bearer
    if key is None or (bearer is not None and not hmac.compare_digest(key.encode(), bearer.encode())):
        return None
    return written.user_id, key


def _bearer_key(authorization: bytes) -> str | None:
    # RFC 9110 section 11.1: the scheme is case-insensitive.
    scheme, _, credentials = authorization.partition(b" ")
    credentials = credentials.strip(b" ")
    if scheme.lower() != b"bearer" or not credentials:
        return None
    return credentials.decode("latin-1")
