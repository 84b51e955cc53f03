"""The sessions that are open now: one `Session` for each MCP conversation, kept in memory.

Lives here: what is known about a session, and the index by id. Not here: how its messages travel (`wire`), what runs
its server (`instances`), its row in the database (`records.recorder`).
"""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Generic, Literal, overload
from uuid import UUID, uuid4

from typing_extensions import TypeVar

from gateway import signals
from gateway.access.identity import Identity
from gateway.access.key_search import without_keys
from gateway.jsonrpc import BATCH_VERSION
from gateway.transports.message_budget import MessageBudget, MessageMemory
from gateway.transports.session_state import SessionState
from gateway.transports.wire import SessionWire, SseWire, StreamableHttpWire

Transport = Literal["sse", "streamable-http", "console"]
"""How the session's messages travel. `console`: an operator's page in the admin is the client."""

WireT = TypeVar("WireT", bound=SessionWire, default=SessionWire)

STOPPED: Final = "the host stopped"
"""End reason of sessions that were open when the process was told to stop."""

TAKEN_OVER: Final = "another process took it over"
"""End reason of a session that goes on in another process."""

MOVED: Final = "its user belongs to another machine now"
"""End reason of an HTTP+SSE session whose caller belongs to another node. Its client connects again, there."""

NOT_RESTORED: Final = "it could not be restored now"
"""End reason of a session whose server did not take it back in time. The next request tries again."""

GOES_ON: Final = frozenset({STOPPED, TAKEN_OVER, MOVED, NOT_RESTORED})
"""Reasons for which a session ends in this process only. All others end it for good."""

EXPIRY_LOOKS: Final = 100
"""How often sessions are looked at in the time that they may be idle. So they may be kept a hundredth longer."""

MAX_FACT_LENGTH: Final = 200
"""The longest client name, version or address that is kept. Clients choose the first two freely."""


@dataclass(eq=False, slots=True)
class Session(Generic[WireT]):
    """One MCP conversation with a session id.

    Threads: it is made, opened and ended on the host's loop. While it is open the host's loop counts what comes in and
    the server's lane counts what goes out; both write `last_activity`, `last_used` and `in_flight`. Each of these
    writes is one step for the interpreter, so no lock is needed. Other threads only read.
    """

    server_name: str
    identity: Identity
    transport: Transport
    address: str
    """The client's IP address, without a port; empty if it has none (a Unix socket)."""
    id: str = field(default_factory=lambda: uuid4().hex, repr=False)
    """What the client presents. Never logged and never stored."""
    row_id: UUID = field(default_factory=uuid4)
    """What operators see: the primary key of its row."""
    opened_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_activity: float = field(default_factory=time.time)
    """When the last message passed in either direction (seconds since the epoch). For display: clocks may be set."""
    last_used: float = field(default_factory=time.monotonic)
    """The same in monotonic seconds, for expiry."""
    client_name: str = ""
    client_version: str = ""
    protocol_version: str = ""
    messages_in: int = 0
    messages_out: int = 0
    calls: int = 0
    in_flight: dict[Hashable, MessageMemory] = field(default_factory=dict, repr=False)
    """Requests that are not answered yet: request id -> the memory it holds."""
    budget: MessageBudget | None = field(default=None, repr=False)
    """Where large messages of the server count that answer no request."""
    open_requests: int = 0
    """HTTP requests of this session that are being answered, open streams included."""
    is_established: bool = False
    """Whether the server has answered a request with a result. Before that there is nothing to show to operators."""
    state: SessionState | None = None
    """What another process needs to go on with it; None if sessions are not restored."""
    end_reason: str = ""
    """Why the host ended the session; empty if the client did."""
    _wire: WireT | None = field(default=None, repr=False)
    _on_end: Callable[[], object] | None = field(default=None, repr=False)

    @property
    def wire(self) -> WireT:
        """What carries its messages. Only an opened session has one."""
        assert self._wire is not None
        return self._wire

    def note_client(self, name: object, version: object, protocol_version: object) -> None:
        """Keep what the client says about itself, as text of bounded length. Anything but text is ignored."""
        self.client_name = _fact(name)
        self.client_version = _fact(version)
        self.protocol_version = _fact(protocol_version)

    def touch(self) -> None:
        """Note that the session was used. Called on the host's loop and in the lane."""
        self.last_activity, self.last_used = time.time(), time.monotonic()

    def note_incoming(self) -> None:
        """Count a message from the client. Called on the host's loop."""
        self.messages_in += 1
        self.touch()

    def note_outgoing(self) -> None:
        """Count a message to the client. Called in the lane."""
        self.messages_out += 1
        self.touch()

    @property
    def is_settled(self) -> bool:
        """Whether every request is answered and every answer is on its way to the client."""
        return not self.in_flight and (self._wire is None or self._wire.is_flushed)

    @property
    def takes_batches(self) -> bool:
        """Whether the session settled on the protocol version that has batches."""
        return self.is_established and self.protocol_version == BATCH_VERSION

    @property
    def is_idle(self) -> bool:
        """Whether the session may make room for a new one: no open stream, no request under way."""
        # An HTTP+SSE session is its stream.
        return self.transport == "streamable-http" and not self.open_requests and not self.in_flight

    def announce(self) -> None:
        """Tell the client that the server's lists may have changed."""
        self.wire.announce()

    def open(self, wire: WireT, on_end: Callable[[], object]) -> None:
        """Connect the session to its wire. `on_end` is called once, when the session ends."""
        self._wire = wire
        self._on_end = on_end

    def end(self, reason: str = "") -> None:
        """End the session; `reason` is empty if the client ended it. Called on the host's loop.

        A second call changes nothing.
        """
        if self._on_end is not None:
            self.end_reason = reason
            on_end, self._on_end = self._on_end, None
            # First it is forgotten: nobody can find a session whose wire has stopped.
            on_end()
            self.wire.stop()


def _fact(value: object) -> str:
    # Operators see it, so it holds no key, whatever the client said.
    return without_keys(value[:MAX_FACT_LENGTH]) if isinstance(value, str) else ""


class Sessions:
    """The open sessions of this process, by id.

    Threads: changed and searched on the host's loop. Other threads may iterate over it and ask for its length.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Session[Any]] = {}
        self._by_server: Counter[str] = Counter()
        self._looks_again_at = 0.0
        """When `expire` next looks at the sessions (monotonic seconds)."""

    def add(self, session: Session[Any]) -> None:
        """Make `session` reachable. The caller must also remove it."""
        self._by_id[session.id] = session
        self._by_server[session.server_name] += 1
        signals.session_opened.send_robust(Sessions, session=session)

    def remove(self, session: Session[Any]) -> None:
        """Forget `session`; its id answers 404 from now on. Removing it again changes nothing."""
        if self._by_id.pop(session.id, None) is not None:
            self._by_server[session.server_name] -= 1
            signals.session_closed.send_robust(Sessions, session=session)

    @overload
    def find(
        self, session_id: str, server_name: str, identity: Identity, transport: Literal["sse"]
    ) -> Session[SseWire] | None: ...

    @overload
    def find(
        self, session_id: str, server_name: str, identity: Identity, transport: Literal["streamable-http"]
    ) -> Session[StreamableHttpWire] | None: ...

    def find(self, session_id: str, server_name: str, identity: Identity, transport: Transport) -> Session[Any] | None:
        """The session with this id, if it belongs to this caller on this server over this transport.

        Somebody else's session is answered exactly like one that does not exist.
        """
        session = self._by_id.get(session_id)
        if (
            session is None
            or session.server_name != server_name
            or (session.identity is not identity and session.identity != identity)
            or session.transport != transport
        ):
            return None
        return session

    def protocol_version_of(self, session_id: str) -> str:
        """The protocol version of a session, whoever owns it; empty if it is not known."""
        session = self._by_id.get(session_id)
        return "" if session is None else session.protocol_version

    def expire(self, idle_seconds: float) -> int:
        """End the Streamable HTTP sessions that had no request for `idle_seconds`. Returns how many.

        Call it regularly. To look at all sessions costs some milliseconds if there are ten thousand.
        """
        now = time.monotonic()
        if now < self._looks_again_at:
            return 0
        self._looks_again_at = now + idle_seconds / EXPIRY_LOOKS
        oldest = now - idle_seconds
        idle = [
            session
            for session in self
            if session.transport == "streamable-http" and not session.open_requests and session.last_used < oldest
        ]
        for session in idle:
            session.end("idle")
        return len(idle)

    @property
    def servers(self) -> list[str]:
        """The names of the servers that have sessions."""
        return [name for name, count in self._by_server.items() if count]

    def has(self, session_id: str) -> bool:
        """Whether there is a session with this id, whoever owns it."""
        return session_id in self._by_id

    def by_row_id(self, row_id: UUID) -> Session | None:
        """The open session of a row. It looks at all sessions; operators' commands, which use it, are rare."""
        return next((session for session in self._by_id.values() if session.row_id == row_id), None)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)
