"""Keeps in rows what open sessions need to go on in another process, and takes over the sessions of other processes.

Lives here: when rows are written. A thread of its own does that, off the request path: once for a session that opens,
once for each change of its state, and once a minute for all sessions that are in use. A database that cannot be written
delays the rows and nothing else. Look-ups have another thread. Not here: the rows (`restorable_rows`), how a session is
opened again (`gateway.endpoints.restoring`).
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID

from django.db import connection
from django.utils import timezone

from gateway import signals
from gateway.access.identity import Identity
from gateway.access.key_search import contains_key
from gateway.access.session_ids import SessionIds
from gateway.bounded_jobs import BoundedJobs
from gateway.conf import conf
from gateway.database_thread import DatabaseOutage, DatabaseThread, FileRenewal
from gateway.exceptions import SessionsUnavailable
from gateway.records.models import RestorableSession
from gateway.records.restorable_rows import KeptSession, RestorableRows, subscriptions_text
from gateway.transports.sessions import GOES_ON, MOVED, STOPPED, TAKEN_OVER, Session, Sessions

logger = logging.getLogger(__name__)

GATHER_SECONDS: Final = 0.02
"""How long the thread waits for more changes before it writes: `initialized` comes right after `initialize`."""

ROUND_SECONDS: Final = 1.0
"""How often it looks for sessions that other processes have taken over, and tries again after a failure."""

TOUCH_SECONDS: Final = 60.0
"""How often it writes which sessions were used; more often if they may be idle for a few minutes only."""

PRUNE_SECONDS: Final = 300.0
"""How often rows of unused sessions are deleted."""

CLOCK_MARGIN_SECONDS: Final = 60.0
"""How much the clocks of machines may differ."""

MAX_WAITING: Final = 20_000
"""How many changes of each kind wait while the database is away. Beyond it the oldest are dropped:
those sessions cannot be restored, or, if their end was dropped, can be restored until they count as idle."""

MAX_ENDED: Final = 20_000
"""How many sessions that ended here are remembered, so that their ids cost no look-up."""

SUPERSEDED_SECONDS: Final = 60.0
"""How long the calls of a session may take that another process has taken over."""

LOOK_UP_SECONDS: Final = 3.0
"""How long a look-up may take; beyond it 503."""

MAX_LOOK_UPS: Final = 500
"""How many look-ups may wait at once; beyond it 503."""

PAUSES_SECONDS: Final = (0.05, 0.15, 0.3)
"""Pauses before a row that is not there is looked for again: another process may be about to write it."""

CONNECTION_SECONDS: Final = 1.0
"""How long a look-up uses a connection to a file."""

MIN_SECRET_LENGTH: Final = 8
"""Shorter keys are not looked for in what clients say: they would be found in ordinary words."""

UNAVAILABLE: Final = "Sessions cannot be looked up now. Try again later."

_T = TypeVar("_T")


class RestorableSessions:
    """Saves what other processes need to take over the sessions of this one, and takes over theirs.

    Threads: signals come on the host's loop and in lanes; `take` and `adopt` are called on the host's loop; a thread
    writes. What they share is guarded by `_lock`.
    """

    def __init__(
        self,
        sessions: Sessions,
        holder: UUID,
        call_soon: Callable[..., None],
        rows: RestorableRows | None = None,
    ) -> None:
        """`holder` is this process. `call_soon` calls a function on the host's loop, from any thread."""
        self.ids = SessionIds.of_settings()
        self._sessions = sessions
        self._call_soon = call_soon
        self._rows = rows or RestorableRows(holder)
        self.is_running = False
        """Whether sessions are kept and restored."""
        self._is_draining = False
        self._lock = threading.Lock()
        self._changed: dict[UUID, Session] = {}
        self._used: dict[UUID, None] = {}
        self._lost: dict[UUID, None] = {}
        self._over: dict[UUID, None] = {}
        self._ended_here: dict[str, None] = {}
        """Digests of ids of sessions that are over."""
        self._superseded: dict[UUID, float] = {}
        """Sessions that other processes have taken over -> when they end at the latest. Used on the host's loop."""
        # A failure says nothing about the session: a client that gets 404 gives it up.
        self._look_ups = BoundedJobs(
            "session-look-up",
            threads=1,
            max_waiting=MAX_LOOK_UPS,
            seconds=LOOK_UP_SECONDS,
            refusal=partial(SessionsUnavailable, UNAVAILABLE),
        )
        self._file_renewal = FileRenewal(CONNECTION_SECONDS)
        # From here on: used in the writing thread only.
        self._last_touch = self._last_prune = self._last_look = time.monotonic()
        self._outage = DatabaseOutage(
            logger,
            "Sessions cannot be written down; those opened now end with this process",
            "Sessions are being written down again",
        )
        self._thread = DatabaseThread(
            "session-writer", self._run_round, self._note_failure, interval_seconds=ROUND_SECONDS
        )

    def start(self) -> None:
        """Start to keep sessions. Does nothing if they are not to be restored."""
        if conf.restores_sessions and not self.is_running:
            self.is_running = True
            signals.session_state_changed.connect(self._on_changed)
            signals.session_closed.connect(self._on_closed)
            self._thread.start()

    def keep_superseded(self) -> None:
        """Keep sessions that other processes take over from now on: this process drains, and their calls go on."""
        self._is_draining = True

    def stop(self) -> None:
        """Write what is left and stop. Blocks for a moment: do not call it on an event loop."""
        if self.is_running:
            self._thread.stop()
            self.is_running = False
            signals.session_state_changed.disconnect(self._on_changed)
            signals.session_closed.disconnect(self._on_closed)
            self._look_ups.close(connection.close)
        else:
            self._look_ups.close()

    # -- On the host's loop and in lanes -----------------------------------------------------------------------------

    def _on_changed(self, session: Session, **_: Any) -> None:
        with self._lock:
            self._changed[session.row_id] = session
            _drop_oldest(self._changed, MAX_WAITING)
        self._thread.wake()

    def _on_closed(self, session: Session, **_: Any) -> None:
        if session.state is None or not session.state.initialize:
            return
        row_id = session.row_id
        with self._lock:
            if session.end_reason == TAKEN_OVER:
                self._changed.pop(row_id, None)
            elif session.transport == "sse" and session.end_reason in ("", STOPPED, MOVED):
                # Perhaps the client comes back. It does not say whether it wanted to leave.
                self._lost[row_id] = None
            elif session.end_reason in GOES_ON:
                self._used[row_id] = None
            else:
                self._changed.pop(row_id, None)
                self._over[row_id] = None
                self._ended_here[self.ids.id_digests(session.id)[0]] = None
                _drop_oldest(self._ended_here, MAX_ENDED)
            for waiting in (self._used, self._lost, self._over):
                _drop_oldest(waiting, MAX_WAITING)
        self._thread.wake()

    # -- Look-ups, on the host's loop --------------------------------------------------------------------------------

    def may_be_elsewhere(self, session_id: str, server_name: str, identity: Identity) -> bool:
        """Whether another process may know a session of this caller with this id. Reads nothing."""
        return (
            self.is_running
            and self.ids.is_genuine(session_id, server_name, identity)
            and not self._sessions.has(session_id)
            and self.ids.id_digests(session_id)[0] not in self._ended_here
        )

    async def take(self, session_id: str, server_name: str, identity: Identity) -> KeptSession | None:
        """Take a Streamable HTTP session over. None if there is none.

        Raises:
            SessionsUnavailable: the database cannot be read.
        """
        ids = self.ids.id_digests(session_id)
        callers = self.ids.caller_digests(server_name, identity, "")
        for pause_seconds in (*PAUSES_SECONDS, None):
            kept = await self._look_up(lambda: self._rows.take(ids, callers, self._idle_seconds))
            # A client that has been given an id may use it before the row is written.
            if kept is not None or pause_seconds is None or ids[0] in self._ended_here:
                return kept
            await asyncio.sleep(pause_seconds)
        return None

    async def adopt(self, server_name: str, identity: Identity, agent: str) -> KeptSession | None:
        """What the newest HTTP+SSE session of the same program of this caller said. None if there is none.

        Raises:
            SessionsUnavailable: the database cannot be read.
        """
        callers = self.ids.caller_digests(server_name, identity, agent)
        live = [session.row_id for session in self._sessions if session.identity == identity]
        return await self._look_up(lambda: self._rows.adopt(callers, live, self._idle_seconds))

    async def _look_up(self, read: Callable[[], _T]) -> _T:
        return await self._look_ups.run(lambda: self._read(read))

    def _read(self, read: Callable[[], _T]) -> _T:
        self._file_renewal.renew()
        try:
            return read()
        except Exception:
            connection.close()
            raise

    def _end_superseded(self, taken: dict[UUID, int]) -> None:
        """End the sessions that other processes have taken over, once their calls are answered."""
        if self._is_draining or not (taken or self._superseded):
            return
        now = time.monotonic()
        for session in self._sessions:
            is_taken = session.state is not None and taken.get(session.row_id, 0) > session.state.epoch
            if not (is_taken or session.row_id in self._superseded):
                continue
            ends_at = self._superseded.setdefault(session.row_id, now + SUPERSEDED_SECONDS)
            if session.is_settled or now >= ends_at:
                session.end(TAKEN_OVER)
                del self._superseded[session.row_id]
        open_ids = {session.row_id for session in self._sessions}
        self._superseded = {row_id: ends for row_id, ends in self._superseded.items() if row_id in open_ids}

    # -- In the writing thread ---------------------------------------------------------------------------------------

    @property
    def _idle_seconds(self) -> float:
        return conf.session_idle_seconds + self._touch_seconds

    @property
    def _touch_seconds(self) -> float:
        return min(TOUCH_SECONDS, conf.session_idle_seconds / 4)

    def _run_round(self, is_last: bool) -> None:
        if not is_last and (self._changed or self._used or self._lost or self._over):
            time.sleep(GATHER_SECONDS)
        with self._lock:
            changed, self._changed = self._changed, {}
            used, self._used = self._used, {}
            lost, self._lost = self._lost, {}
            over, self._over = self._over, {}
        try:
            self._rows.write([row for session in changed.values() if (row := self._row(session)) is not None])
            self._rows.touch(used)
            self._rows.note_lost(lost)
            self._rows.delete(over)
        except Exception:
            with self._lock:
                self._changed = {**changed, **self._changed}
                self._used = {**used, **self._used}
                self._lost = {**lost, **self._lost}
                self._over = {**over, **self._over}
                for waiting in (self._changed, self._used, self._lost, self._over):
                    _drop_oldest(waiting, MAX_WAITING)
            raise
        now = time.monotonic()
        if now - self._last_touch >= self._touch_seconds:
            self._rows.touch(self._in_use(self._last_touch))
            self._last_touch = now
        if now - self._last_look >= ROUND_SECONDS and not is_last:
            taken = self._rows.taken_by_others(now - self._last_look + CLOCK_MARGIN_SECONDS)
            self._call_soon(self._end_superseded, taken)
            self._last_look = now
        if now - self._last_prune >= PRUNE_SECONDS:
            self._rows.delete_unused(self._idle_seconds)
            self._last_prune = now
        if self._outage.is_present:
            self._outage.end()
            # The database may be another one.
            with self._lock:
                self._changed = {**{session.row_id: session for session in self._kept_sessions()}, **self._changed}

    def _note_failure(self, error: Exception) -> None:
        self._outage.begin(error)
        connection.close()

    def _kept_sessions(self) -> Iterable[Session]:
        return [session for session in self._sessions if session.state is not None and session.is_established]

    def _in_use(self, since: float) -> list[UUID]:
        """The sessions that were used since (monotonic seconds), or have a stream open."""
        return [
            session.row_id for session in self._kept_sessions() if session.last_used >= since or not session.is_idle
        ]

    def _row(self, session: Session) -> RestorableSession | None:
        state = session.state
        if state is None or not state.initialize:
            return None
        initialize = state.initialize.decode()
        key = session.identity.api_key
        if _has_secret(initialize, key):
            return None
        idle = timedelta(seconds=max(0.0, time.monotonic() - session.last_used))
        return RestorableSession(
            id=session.row_id,
            id_digest=self.ids.id_digests(session.id)[0],
            caller_digest=self.ids.caller_digests(session.server_name, session.identity, state.agent)[0],
            transport=session.transport,
            epoch=state.epoch,
            initialize=initialize,
            protocol_version=session.protocol_version,
            is_initialized=state.is_initialized,
            log_level=state.log_level,
            subscriptions=subscriptions_text(uri for uri in list(state.subscriptions) if not _has_secret(uri, key)),
            last_used_at=timezone.now() - idle,
        )


def _has_secret(text: str, key: str | None) -> bool:
    """Whether a client wrote a key where none belongs. No row may hold one."""
    return contains_key(text) or (key is not None and len(key) >= MIN_SECRET_LENGTH and key in text)


def _drop_oldest(waiting: dict[Any, Any], count: int) -> None:
    """Keep the newest `count` entries."""
    while len(waiting) > count:
        del waiting[next(iter(waiting))]
