"""The calls and refusals of the last moments, until the recorder has written them, and each server's traffic.

Lives here: what is noted of a call, in memory. Of what a caller sent, only names are kept, cut to a bounded length: no
argument, no result, no key. Not here: rows (`records.calls`), Prometheus' metrics (`metrics`).

Refusals that are alike are noted at once when they come first, and then once a minute with their number: a client that
tries again all the time must not push everything else out of the record.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple
from uuid import UUID

from gateway import signals
from gateway.access.identity import Identity, current_identity
from gateway.exceptions import GatewayError
from gateway.http.current_request import CurrentRequest, current_request
from gateway.http.requests import header
from gateway.instances.traffic import FAILURES, Failure, RecentNames, ServerTraffic

MAX_UNWRITTEN: Final = 50_000
"""How many calls are kept while the database is away. Beyond it the oldest are dropped."""

MAX_KINDS_OF_REFUSALS: Final = 2000
"""How many kinds of refusals are told apart within a minute; the rest count by their reason only."""

SETTLE_SECONDS: Final = 0.1
"""How long after its end a call is written at the earliest: its answer's size is known a moment after."""

MINUTE: Final = 60.0

MAX_NAME_LENGTH: Final = 100
"""Longest name that a client chose which is kept, in characters."""

REFUSED: Final = "refused"

STATELESS: Final = "stateless"
"""What stands for the transport of a request without a session."""


class Conversation(NamedTuple):
    """What a call belongs to: a session, or one stateless request."""

    transport: str = ""
    protocol_version: str = ""
    client_name: str = ""
    client_version: str = ""
    session_id: UUID | None = None
    """The id of the session's row; None where there is no session."""


NO_CONVERSATION: Final = Conversation()

current_conversation: Final[ContextVar[Callable[[], Conversation]]] = ContextVar(
    "current_conversation", default=lambda: NO_CONVERSATION
)
"""Says what the present message belongs to, in a lane."""


@dataclass(slots=True)
class Call:
    """One call of a tool, or one kind of refusal."""

    server_name: str
    tool: str
    user_id: str = ""
    key: str = ""
    """The public part of the key."""
    conversation: Conversation = NO_CONVERSATION
    outcome: str = ""
    reason: str = ""
    seconds: float = 0.0
    size_bytes: int = 0
    """How long the answer was."""
    times: int = 1
    """How many refusals of this kind it stands for."""
    ended_at: float = field(default_factory=time.time)
    """Seconds since the epoch."""

    @classmethod
    def begin(cls, server_name: str, tool: str, user_id: str) -> "Call":
        """Note who calls what. Called in the lane, in the context of the call."""
        identity = current_identity.get()
        grant = None if identity is None else identity.grant
        return cls(server_name, tool, user_id, "" if grant is None else grant.public, current_conversation.get()())


current_call: Final[ContextVar[Call | None]] = ContextVar("current_call", default=None)
"""The call that is being answered, in a lane."""


def call_outcome() -> str:
    """How the current call ended; empty if there is none."""
    call = current_call.get()
    return "" if call is None else call.outcome


def note_answer_size(size_bytes: int) -> None:
    """Note how long the answer to the current call is, if there is one."""
    call = current_call.get()
    if call is not None:
        call.size_bytes = size_bytes


class CallLog:
    """Calls and refusals that are not written yet, and the traffic of each server.

    Threads: any thread may use it; a server's calls are noted in its lane.
    """

    def __init__(self, *, keeps_calls: bool = True, is_server: Callable[[str], bool] = lambda name: True) -> None:
        """`keeps_calls`: whether anybody takes the calls to write them. Traffic is counted in any case.

        `is_server`: whether there is a server of this name. Names that strangers invent are not kept.
        """
        self._keeps_calls = keeps_calls
        self._is_server = is_server
        self._servers: dict[str, ServerTraffic] = {}
        self._ended: deque[Call] = deque(maxlen=MAX_UNWRITTEN)
        self._lock = threading.Lock()
        self._minute = 0.0
        self._refusals: dict[tuple[str, ...], Call] = {}
        """The kinds of refusals of this minute. `times` says how many came after the first one."""
        self.refusals = RecentNames()
        """Refusals by reason. Written under the lock, as the next one."""
        self.users = RecentNames()
        """Calls by user."""

    def traffic(self, server_name: str) -> ServerTraffic:
        """The counters of one server."""
        found = self._servers.get(server_name)
        if found is None:
            found = self._servers.setdefault(server_name, ServerTraffic())
        return found

    def traffics(self) -> dict[str, ServerTraffic]:
        """The counters of all servers that were called."""
        return self._servers.copy()

    def note(self, traffic: ServerTraffic, call: Call, label: str) -> None:
        """Note a call that has ended. `label`: its tool's label in metrics."""
        traffic.note(label, call.outcome, call.seconds)
        with self._lock:
            self.users.note(call.user_id)
        if call.outcome in FAILURES:
            traffic.last_failure = Failure(call.ended_at, label, call.outcome, call.reason)
        if self._keeps_calls:
            self._ended.append(call)

    def note_refusal(self, call: Call) -> None:
        """Note a call, or another request, that the host refused."""
        call.outcome = REFUSED
        kind = (call.server_name, call.tool, call.user_id, call.key, call.reason)
        with self._lock:
            self.refusals.note(call.reason.partition(":")[0])
            if not self._keeps_calls:
                return
            self._end_minute(call.ended_at)
            known = self._refusals.get(kind)
            if known is None and len(self._refusals) >= MAX_KINDS_OF_REFUSALS:
                call = Call("", "", outcome=REFUSED, reason=call.reason.partition(":")[0], ended_at=call.ended_at)
                kind = ("", "", "", "", call.reason)
                known = self._refusals.get(kind)
            if known is None:
                self._refusals[kind] = replace(call, times=0)
                self._ended.append(call)
            else:
                known.times += 1
                known.ended_at = call.ended_at

    def _end_minute(self, now: float) -> None:
        """Pass on how often each kind of refusal was repeated, once a minute is over."""
        minute = now // MINUTE
        if minute != self._minute:
            self._ended.extend(call for call in self._refusals.values() if call.times)
            self._refusals.clear()
            self._minute = minute

    def take(self, *, is_last: bool = False) -> list[Call]:
        """Take what has ended and is to be written. `is_last`: everything."""
        now = time.time()
        settled = now - SETTLE_SECONDS
        with self._lock:
            self._end_minute(float("inf") if is_last else now)
        taken: list[Call] = []
        while self._ended:
            call = self._ended.popleft()
            # A clock that was set back must not hold the calls up.
            if not is_last and settled < call.ended_at <= now:
                self._ended.appendleft(call)
                break
            taken.append(call)
        return taken

    def put_back(self, calls: list[Call]) -> None:
        """Keep calls that could not be written, as far as there is room."""
        room = MAX_UNWRITTEN - len(self._ended)
        self._ended.extendleft(reversed(calls[max(0, len(calls) - room) :] if room > 0 else []))

    # -- Refused requests --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to note the requests that the host refuses."""
        signals.request_refused.connect(self._on_request_refused)

    def stop(self) -> None:
        """Stop noting them."""
        signals.request_refused.disconnect(self._on_request_refused)

    def _on_request_refused(self, reason: str, error: GatewayError | None = None, **_: Any) -> None:
        """Sent where the request is answered, so in its context."""
        request, identity = current_request.get(), current_identity.get()
        grant = None if identity is None else identity.grant
        note = "" if error is None else error.note_for_operators
        server_name = "" if request is None else request.server_name[:MAX_NAME_LENGTH]
        user_id = identity.user_id if identity is not None else "" if error is None else error.user_id
        if grant is None and not self._is_server(server_name):
            # A stranger invented the path. What stands for the user in it may be a key.
            server_name = user_id = ""
        call = Call(
            server_name=server_name,
            tool=str(getattr(error, "tool", ""))[:MAX_NAME_LENGTH],
            user_id=user_id,
            key=grant.public if grant is not None else "" if error is None else error.key,
            conversation=NO_CONVERSATION if request is None else _client_of(request),
            reason=f"{reason}: {note}" if note else reason,
        )
        self.note_refusal(call)


def _client_of(request: CurrentRequest) -> Conversation:
    """What a refused request says of its client."""
    version, agent = header(request.scope, b"mcp-protocol-version"), header(request.scope, b"user-agent")
    return Conversation("", (version or "")[:MAX_NAME_LENGTH], (agent or "")[:MAX_NAME_LENGTH])


def refused_call(server_name: str, tool: object, identity: Identity, reason: str) -> Call:
    """A call of a tool that the host refused in the lane."""
    call = Call.begin(server_name, str(tool)[:MAX_NAME_LENGTH], identity.user_id)
    call.reason = reason
    return call
