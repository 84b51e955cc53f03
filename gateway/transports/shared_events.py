"""Events of streams that are kept in Redis, so that another process can resume a stream whose process has ended.

Lives here: writing and reading them. Not here: the events that a process keeps of its own sessions (`event_buffer`),
how a stream is resumed (`streamable_http`).

A thread writes, some milliseconds later; no request waits for Redis, except one that resumes a stream of another
process. If Redis is away, or too slow, events are lost, and with them the resumption: 404, as without Redis. What is
there has no gaps.

Redis sees neither session ids nor messages: keys are digests, and messages are encrypted, both with keys from Django's
secret key. One Redis stream holds the events of one session in one process, within the bounds that the process has for
its own events, and is deleted `KEPT_SECONDS` after the last one.
"""

import hmac
import json
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from mcp_types import RequestId

from gateway.bounded_jobs import BoundedJobs
from gateway.conf.redis import redis_options
from gateway.database_thread import Outage
from gateway.jsonrpc import request_key

logger = logging.getLogger(__name__)

KEPT_SECONDS: Final = 300
"""How long events are kept after the last one of their session."""

ALIVE_SECONDS: Final = 3.0
"""A process that has not said for so long that it is alive will add no more events."""

BEAT_SECONDS: Final = 1.0
"""How often a process says so while it has streams whose calls run."""

GATHER_SECONDS: Final = 0.005
"""How long the thread waits for more events, which it then writes together."""

AWAY_SECONDS: Final = 2.0
"""How long Redis is left alone after a failure. Events of that time are lost."""

MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
"""How much may wait for the thread. What comes on top is lost."""

MAX_LOGS: Final = 20_000
"""How many sessions the thread remembers. Of one that it has forgotten, only later events are kept."""

READ_SECONDS: Final = 1.0
MAX_READS: Final = 100
"""How long a request waits for events of another process, and how many may wait."""

_NONCE_BYTES: Final = 12

EVENT: Final = b"e"
OPENED: Final = b"o"
ENDED: Final = b"x"
TOO_LARGE: Final = b"l"
"""An event that is larger than all may be together. It is never in Redis."""


class EventsUnavailable(Exception):
    """Redis does not answer, or too many wait for it."""


@dataclass(frozen=True, slots=True)
class SharedStream:
    """What is known of a stream of another process, after a certain event."""

    events: list[tuple[int, bytes]]
    """Sequence and data of those that followed."""
    unanswered: list[Any]
    """The ids of the requests that it was to answer and has not."""
    is_alive: bool
    """Whether its process still runs and may add to it."""


@dataclass(slots=True)
class _Entry:
    log: str
    stream: int
    kind: bytes
    sequence: int
    data: bytes


@dataclass(slots=True)
class _Log:
    """What the thread remembers of one session's events in Redis."""

    sizes: deque[tuple[bytes, int]] = field(default_factory=deque)
    size: int = 0
    last: tuple[int, int] = (0, 0)


class SharedEvents:
    """One process's access to the events that all processes keep in Redis."""

    def __init__(self, url: str, secret: str, holder: UUID, *, max_events: int, max_bytes: int) -> None:
        """`holder` is this process. `max_events`, `max_bytes`: the bounds of one session."""
        # Imported here: only where a Redis is configured.
        import redis
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._client = redis.Redis.from_url(url, **redis_options(is_async=False))
        self._errors = (redis.RedisError, OSError)
        self._name_key = hmac.digest(secret.encode(), b"gumcp names of events", sha256)
        self._cipher = AESGCM(hmac.digest(secret.encode(), b"gumcp contents of events", sha256))
        self._holder = holder.hex
        self._max_events, self._max_bytes = max_events, max_bytes
        self._lock = threading.Lock()
        self._waiting: deque[_Entry] = deque()
        self._waiting_bytes = 0
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        self._lost: set[tuple[str, int | None]] = set()
        """Logs for whose events there was no room since the thread looked; beside them a stream whose end was lost."""
        # Used in the thread only.
        self._logs: OrderedDict[str, _Log] = OrderedDict()
        self._open: set[tuple[str, int]] = set()
        self._away_until = self._next_beat = 0.0
        self._outage = Outage(
            logger,
            "Streams cannot be resumed in other processes",
            "Streams can be resumed in other processes again",
        )
        self._reads = BoundedJobs(
            "shared-events", threads=2, max_waiting=MAX_READS, seconds=READ_SECONDS, refusal=EventsUnavailable
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="shared-events", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, and stop. Blocks for a moment: not for event loops. A second call does nothing."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(READ_SECONDS)
        self._reads.close(self._client.close)

    def log_name(self, session_id: str, epoch: int) -> str:
        """The name of the events that a session has in its process. `epoch` goes up with each of its processes."""
        return f"gumcp:events:{hmac.digest(self._name_key, session_id.encode(), sha256).hex()[:40]}:{epoch}"

    # -- Writing: in any thread --------------------------------------------------------------------------------------

    def add(self, log: str, stream: int, kind: bytes, sequence: int, data: bytes) -> None:
        """Keep an event: its data, the ids of the requests of a stream that opens, or nothing for its end."""
        if len(data) > self._max_bytes:
            # It would be dropped at once, and every other event with it. It need not travel for that.
            kind, data = TOO_LARGE, b""
        with self._lock:
            if self._waiting_bytes > MAX_WAITING_BYTES:
                self._lost.add((log, stream if kind == ENDED else None))
                return
            self._waiting.append(_Entry(log, stream, kind, sequence, data))
            self._waiting_bytes += len(data) + 200
        self._wake.set()

    # -- Reading: on the host's loop ---------------------------------------------------------------------------------

    async def read(self, log: str, stream: int, sequence: int) -> SharedStream | None:
        """What followed on a stream after an event; None if that event is not there any more.

        Raises:
            EventsUnavailable: Redis does not answer.
        """
        return await self._reads.run(lambda: self._read(log, stream, sequence))

    def _read(self, log: str, stream: int, sequence: int) -> SharedStream | None:
        entries: list[tuple[bytes, dict[bytes, bytes]]] = self._client.xrange(log)  # type: ignore[assignment]
        events: list[tuple[int, bytes]] = []
        unanswered: dict[Any, Any] = {}
        is_found = is_ended = False
        holder = b""
        for entry_id, fields in entries:
            if int(fields[b"s"]) != stream:
                continue
            holder, kind, number = fields[b"p"], fields[b"k"], int(entry_id.partition(b"-")[0])
            data = self._opened(log, fields[b"d"])
            if kind == OPENED:
                unanswered = {request_key(request_id): request_id for request_id in json.loads(data)}
            elif kind == ENDED:
                is_ended = True
            else:
                is_found |= number == sequence
                if data:
                    unanswered.pop(_answered(data), None)
                    if number > sequence:
                        events.append((number, data))
        if not is_found:
            return None
        is_alive = not is_ended and bool(self._client.exists(_alive_key(holder.decode())))
        return SharedStream(events, list(unanswered.values()), is_alive)

    # -- In the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.wait(BEAT_SECONDS if self._open else None)
            self._wake.clear()
            if not self._is_stopping:
                time.sleep(GATHER_SECONDS)
            with self._lock:
                entries, self._waiting = self._waiting, deque()
                self._waiting_bytes = 0
                lost, self._lost = self._lost, set()
            try:
                # What was lost may have come before these or after them.
                self._forget(lost)
                self._write(entries)
                self._forget(lost)
            except Exception as error:
                # Whatever went wrong, later events must not follow on a gap.
                self._note_lost(entries)
                self._away_until = time.monotonic() + AWAY_SECONDS
                self._outage.begin(error)
                if not isinstance(error, self._errors):
                    logger.exception("Events could not be shared")
            if self._is_stopping:
                return

    def _write(self, entries: deque[_Entry]) -> None:
        now = time.monotonic()
        if now < self._away_until:
            self._note_lost(entries)
            return
        pipeline = self._client.pipeline(transaction=False)
        for entry in entries:
            self._add(pipeline, entry)
        for log in {entry.log for entry in entries}:
            pipeline.expire(log, KEPT_SECONDS)
        if self._open and now >= self._next_beat:
            self._next_beat = now + BEAT_SECONDS
            pipeline.set(_alive_key(self._holder), b"", px=int(ALIVE_SECONDS * 1000))
        if len(pipeline):
            pipeline.execute()
            self._outage.end()

    def _add(self, pipeline: Any, entry: _Entry) -> None:
        name = entry.log
        log = self._logs.get(name)
        if log is None:
            # What is there has a gap from here on.
            pipeline.delete(name)
            log = self._logs[name] = _Log()
            if len(self._logs) > MAX_LOGS:
                self._logs.popitem(last=False)
        self._logs.move_to_end(name)
        is_event = entry.kind in (EVENT, TOO_LARGE)
        log.last = (entry.sequence, 0) if is_event else (max(log.last[0], entry.sequence), log.last[1] + 1)
        if entry.stream:
            (self._open.discard if entry.kind == ENDED else self._open.add)((name, entry.stream))
        if entry.kind == TOO_LARGE:
            log.sizes.clear()
            log.size = 0
            pipeline.delete(name)
            return
        entry_id = b"%d-%d" % log.last
        fields = {
            b"s": entry.stream,
            b"k": entry.kind,
            b"p": self._holder,
            b"d": self._closed(name, entry.data),
        }
        pipeline.xadd(name, fields, id=entry_id)
        log.sizes.append((entry_id, len(entry.data)))
        log.size += len(entry.data)
        if len(log.sizes) > self._max_events or log.size > self._max_bytes:
            while len(log.sizes) > self._max_events or log.size > self._max_bytes:
                log.size -= log.sizes.popleft()[1]
            if log.sizes:
                pipeline.xtrim(name, minid=log.sizes[0][0], approximate=False)
            else:
                pipeline.delete(name)

    def _note_lost(self, entries: deque[_Entry]) -> None:
        self._forget({(entry.log, entry.stream if entry.kind == ENDED else None) for entry in entries})

    def _forget(self, lost: set[tuple[str, int | None]]) -> None:
        """Have what these logs hold in Redis deleted before they get another event."""
        for log, ended in lost:
            self._logs.pop(log, None)
            if ended is not None:
                self._open.discard((log, ended))

    def _closed(self, log: str, data: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, log.encode())

    def _opened(self, log: str, data: bytes) -> bytes:
        return self._cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], log.encode())


def _alive_key(holder: str) -> str:
    return f"gumcp:alive:{holder}"


def _answered(data: bytes) -> RequestId | None:
    """The key of the request that a message answers; None if it is another message."""
    message = json.loads(data)
    return None if "method" in message or message.get("id") is None else request_key(message["id"])
