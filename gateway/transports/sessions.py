"""What is open now: one `Session` per MCP conversation, kept in memory. Rows in the database are a mirror (`recorder`).

Lives here: the facts of a session and the index by id. Not here: its wire (`transports`), what serves it (`instances`).
"""

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID, uuid4

from gateway import signals
from gateway.access.identity import Identity
from gateway.exceptions import SessionLimitReached

Transport = Literal["sse", "streamable-http"]

MAX_FACT_LENGTH: Final = 200
"""Longest client name, version or address that is kept: clients choose the first two freely."""


@dataclass(eq=False, slots=True)
class Session:
    """One MCP conversation with a session id.

    Counters are written by one thread each: what comes in by the host's loop, what goes out by the server's lane.
    """

    server_name: str
    identity: Identity
    transport: Transport
    address: str
    """The client's IP address, without a port; empty where there is none (a Unix socket)."""
    id: str = field(default_factory=lambda: uuid4().hex, repr=False)
    """What the client presents. Never logged and never stored."""
    row_id: UUID = field(default_factory=uuid4)
    """What operators see: the primary key of its row."""
    opened_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_activity: float = field(default_factory=time.time)
    """Seconds since the epoch at which the last message passed, either way. For people: clocks are set."""
    last_used: float = field(default_factory=time.monotonic)
    """The same in monotonic seconds, for expiry."""
    client_name: str = ""
    client_version: str = ""
    protocol_version: str = ""
    messages_in: int = 0
    messages_out: int = 0
    calls: int = 0
    in_flight: dict[Hashable, float] = field(default_factory=dict, repr=False)
    """Requests that are not answered yet: their id, and when they came (monotonic seconds)."""
    open_requests: int = 0
    """HTTP requests of this session that are being answered, open streams included."""
    end_reason: str = ""
    """Why the host ended it; empty when the client did."""
    wire: Any = field(default=None, repr=False)
    """The transport that carries it; the doors know which kind by `transport`."""
    _end: Callable[[], object] | None = field(default=None, repr=False)

    def note_client(self, name: object, version: object, protocol_version: object) -> None:
        """Keep what the client says of itself, as text of bounded length; what is no text says nothing."""
        self.client_name = _fact(name)
        self.client_version = _fact(version)
        self.protocol_version = _fact(protocol_version)

    def touch(self) -> None:
        """Note that the session was used."""
        self.last_activity, self.last_used = time.time(), time.monotonic()

    def note_incoming(self) -> None:
        """Count a message from the client."""
        self.messages_in += 1
        self.touch()

    def note_outgoing(self) -> None:
        """Count a message to the client."""
        self.messages_out += 1
        self.touch()

    @property
    def is_settled(self) -> bool:
        """Whether every request is answered and all that was said is on its way to the client."""
        return not self.in_flight and (self.wire is None or self.wire.is_flushed)

    def announce(self) -> None:
        """Tell the client that the server's lists may have changed."""
        self.wire.announce()

    def on_end(self, callback: Callable[[], object]) -> None:
        """Set what closes the session's wire. Called once, on the host's loop."""
        self._end = callback

    def end(self, reason: str) -> None:
        """Close the session from this side. Call it on the host's loop; a second call changes nothing."""
        if self._end is not None:
            self.end_reason = self.end_reason or reason
            callback, self._end = self._end, None
            callback()


def _fact(value: object) -> str:
    return value[:MAX_FACT_LENGTH] if isinstance(value, str) else ""


class Sessions:
    """The open sessions of this process, by id."""

    def __init__(self) -> None:
        self._by_id: dict[str, Session] = {}

    def require_room(self, limit: int) -> None:
        """Check that one more session may be opened.

        Raises:
            SessionLimitReached
        """
        if len(self._by_id) >= limit:
            raise SessionLimitReached("The host has as many sessions open as it may. Try again later.")

    @contextmanager
    def open(self, session: Session) -> Iterator[Session]:
        """Keep `session` reachable inside the block. Signals are sent on both ends, so no count can drift."""
        self.add(session)
        try:
            yield session
        finally:
            self.remove(session)

    def add(self, session: Session) -> None:
        """Make `session` reachable. Whoever adds it removes it."""
        self._by_id[session.id] = session
        signals.session_opened.send_robust(Sessions, session=session)

    def remove(self, session: Session) -> None:
        """Forget `session`. Its id answers 404 from now on; removing it again changes nothing."""
        if self._by_id.pop(session.id, None) is not None:
            signals.session_closed.send_robust(Sessions, session=session)

    def find(self, session_id: str, server_name: str, identity: Identity, transport: Transport) -> Session | None:
        """The session with this id, if it is this caller's on this server over this transport.

        Somebody else's session is answered exactly as one that does not exist.
        """
        session = self._by_id.get(session_id)
        if (
            session is None
            or session.server_name != server_name
            or session.identity != identity
            or session.transport != transport
        ):
            return None
        return session

    def expire(self, idle_seconds: float) -> int:
        """End the Streamable HTTP sessions that had no request for so long; returns how many."""
        oldest = time.monotonic() - idle_seconds
        idle = [
            session
            for session in self
            if session.transport == "streamable-http" and not session.open_requests and session.last_used < oldest
        ]
        for session in idle:
            session.end("idle")
        return len(idle)

    def by_row_id(self, row_id: UUID) -> Session | None:
        """The open session behind a row. Meant for operators' commands, which are rare: it looks at all of them."""
        return next((session for session in self._by_id.values() if session.row_id == row_id), None)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)
