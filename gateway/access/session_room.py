"""How many sessions may be open: of one key, of one address, and in the whole process.

At a limit the session that has been idle longest makes room for the new one, as instances do: many clients never end
their sessions. A session with an open stream or a request under way is in use and stays. Only while all are in use is
the newcomer refused. Requests that listen (`subscriptions/listen`) last as long as sessions and take the same room.

Not here: the sessions themselves (`gateway.transports.sessions`), limits of requests (`limits`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from heapq import nsmallest
from typing import Any, Final, Literal

from gateway import signals
from gateway.access.identity import Identity
from gateway.access.limits import SITE_FACTOR, RateLimits
from gateway.access.owned import OwnedSession
from gateway.exceptions import GatewayError, SessionLimitReached, TooManyRequests, Unauthenticated
from gateway.http.addresses import counted_address, counted_site

MADE_ROOM: Final = "made room for a newer session"
"""The end reason of sessions that were idle when a limit was reached."""

RETRY_SECONDS: Final = 10
"""When a refused client should try again: nobody knows when a session ends."""

KNOWN_IDLE: Final = 100
"""How many idle sessions one look at a group remembers, so that not every newcomer costs a look at all sessions."""

LARGE_GROUP: Final = 1000
"""Sessions from which on a look is expensive: one that found all of them in use is not repeated at once."""

LOOK_PAUSE_SECONDS: Final = 0.25
"""How long a large group in which all sessions are in use is not looked at again."""

_Rule = Literal["sessions of a key", "sessions of an address", "sessions of the host"]

_Share = tuple[_Rule, str]
"""A limit and what it counts: a key, an address, or the host."""


class SessionRoom:
    """Counts what is open and makes room. Used on the host's loop."""

    def __init__(self, limits: RateLimits, *, of_host: int = 0, of_key: int = 0, of_address: int = 0) -> None:
        """`of_host`, `of_key`, `of_address`: how many sessions each may have open; 0 for no limit."""
        self._limits = limits
        self._of_host = of_host
        self._of_key = of_key
        self._of_address = of_address
        self._groups: dict[_Share, _Group] = {}

    def start(self) -> None:
        """Start to count the sessions that open and close."""
        signals.session_opened.connect(self._on_session_opened)
        signals.session_closed.connect(self._on_session_closed)

    def stop(self) -> None:
        """Stop counting."""
        signals.session_opened.disconnect(self._on_session_opened)
        signals.session_closed.disconnect(self._on_session_closed)

    def require(self, identity: Identity, address: str) -> None:
        """Check that `identity` may open one more session, and that room can be made for it. Ends nothing.

        Raises:
            Unauthenticated: the key was revoked in the meantime.
            TooManyRequests: the key or the address has as many sessions in use as it may.
            SessionLimitReached: the host has.
        """
        if identity.is_revoked:
            raise Unauthenticated
        for share, limit in self._shares(identity, address):
            group = self._groups.get(share)
            if group is not None and len(group) >= limit and group.longest_idle() is None:
                raise self._refusal(share)

    def make(self, identity: Identity, address: str) -> None:
        """Make room for one more session or listener. Call it in the step that opens it. Raises what `require` raises.

        Nothing is ended if the newcomer is refused.
        """
        self.require(identity, address)
        for share, limit in self._shares(identity, address):
            group = self._groups.get(share)
            if group is not None and len(group) >= limit:
                longest_idle = group.longest_idle()
                if longest_idle is not None:
                    longest_idle.end(MADE_ROOM)

    @contextmanager
    def listening(self, identity: Identity, address: str) -> Iterator[None]:
        """Take the room of a session inside the block, for a stateless request that lasts as long as one."""
        self._count_listener(identity, address, 1)
        try:
            yield
        finally:
            self._count_listener(identity, address, -1)

    def _shares(self, identity: Identity, address: str) -> list[tuple[_Share, int]]:
        """The limits that a session of `identity` at `address` counts towards, the narrowest first."""
        shares: list[tuple[_Share, int]] = []
        if self._of_key and identity.grant is not None:
            shares.append((("sessions of a key", identity.grant.public), self._of_key))
        if self._of_address:
            shares.append((("sessions of an address", counted_address(address)), self._of_address))
            site = counted_site(address)
            if site is not None:
                shares.append((("sessions of an address", site), self._of_address * SITE_FACTOR))
        if self._of_host:
            shares.append((("sessions of the host", ""), self._of_host))
        return shares

    def _refusal(self, share: _Share) -> GatewayError:
        rule, subject = share
        self._limits.note_refusal(rule, subject)
        if rule == "sessions of the host":
            return SessionLimitReached("The host has as many sessions in use as it may. Try again later.")
        who = "key" if rule == "sessions of a key" else "address"
        return TooManyRequests(f"This {who} has as many sessions in use as it may.", RETRY_SECONDS)

    def _on_session_opened(self, session: OwnedSession, **_: Any) -> None:
        if session.identity.grant is not None:
            session.identity.grant.sessions += 1
        for share, _limit in self._shares(session.identity, session.address):
            self._groups.setdefault(share, _Group()).add(session)

    def _on_session_closed(self, session: OwnedSession, **_: Any) -> None:
        if session.identity.grant is not None:
            session.identity.grant.sessions -= 1
        for share, _limit in self._shares(session.identity, session.address):
            group = self._groups.get(share)
            if group is not None:
                group.remove(session)
                self._forget_if_empty(share)

    def _count_listener(self, identity: Identity, address: str, change: Literal[1, -1]) -> None:
        if identity.grant is not None:
            identity.grant.sessions += change
        for share, _limit in self._shares(identity, address):
            self._groups.setdefault(share, _Group()).listeners += change
            self._forget_if_empty(share)

    def _forget_if_empty(self, share: _Share) -> None:
        if not len(self._groups[share]):
            del self._groups[share]


class _Group:
    """The sessions and listeners that one limit counts together."""

    __slots__ = ("_idle", "_looks_again_at", "_sessions", "listeners")

    def __init__(self) -> None:
        self.listeners = 0
        self._sessions: dict[OwnedSession, None] = {}
        self._idle: dict[OwnedSession, float] = {}
        """Sessions that were idle at the last look -> when they had been used last. The longest idle comes first."""
        self._looks_again_at = 0.0

    def __len__(self) -> int:
        return len(self._sessions) + self.listeners

    def add(self, session: OwnedSession) -> None:
        self._sessions[session] = None

    def remove(self, session: OwnedSession) -> None:
        self._sessions.pop(session, None)
        self._idle.pop(session, None)

    def longest_idle(self) -> OwnedSession | None:
        """The session that has been idle longest; None while all are in use."""
        found = self._first_idle()
        if found is None and time.monotonic() >= self._looks_again_at:
            self._look()
            found = self._first_idle()
        return found

    def _first_idle(self) -> OwnedSession | None:
        # Those that were used since the look are younger than all that were idle then.
        while self._idle:
            session, last_used = next(iter(self._idle.items()))
            if session.is_idle and session.last_used == last_used:
                return session
            del self._idle[session]
        return None

    def _look(self) -> None:
        idle = (session for session in self._sessions if session.is_idle)
        longest = nsmallest(KNOWN_IDLE, ((session.last_used, id(session), session) for session in idle))
        self._idle = {session: last_used for last_used, _, session in longest}
        if not self._idle and len(self._sessions) >= LARGE_GROUP:
            self._looks_again_at = time.monotonic() + LOOK_PAUSE_SECONDS
