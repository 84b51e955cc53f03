"""What this process did in the last hour, in memory, and in each minute, for rows.

Lives here: samples of the counters (`instances.traffic`), taken by a clock that needs no database. Not here: showing
them (`console`).
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import add, sub
from typing import Final, NamedTuple
from uuid import UUID

from django.db import DatabaseError
from django.utils import timezone

from gateway.instances.call_log import CallLog
from gateway.instances.traffic import COUNTERS, ServerTraffic, percentiles
from gateway.process_memory import resident_bytes
from gateway.records.models import MinuteRecord

SAMPLE_SECONDS: Final = 10.0
"""How far apart the points of the last hour are."""

KEPT_SAMPLES: Final = 360
"""An hour of them."""

RECENT_SAMPLES: Final = 7
"""What counts as recent: the last minute."""

MINUTE: Final = 60

MAX_UNWRITTEN_MINUTES: Final = 1440
"""How many minutes are kept while the database is away."""

KEPT_DAYS: Final = 7
"""How long the rows of minutes are kept."""


class Sample(NamedTuple):
    """What the process did in one stretch of time."""

    at: float
    """Its end (seconds since the epoch)."""
    calls_per_second: float
    errors_per_second: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    sessions: int
    memory_bytes: int


class ServerFigures(NamedTuple):
    """What one server did lately."""

    calls_per_second: float
    """In the last 10 to 20 seconds."""
    errors: int
    """In the last minute."""
    p50_ms: float | None
    p95_ms: float | None


@dataclass(frozen=True, slots=True)
class _Minute:
    at: datetime
    calls: int
    errors: int
    sessions: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    memory_bytes: int


class _Counters(NamedTuple):
    """The counters of one server at one moment."""

    calls: int
    errors: int
    durations: list[int]


_NOTHING: Final = _Counters(0, 0, [0] * COUNTERS)


class _Mark(NamedTuple):
    """The counters of all servers at one moment."""

    taken_at: float
    """Monotonic seconds."""
    servers: Mapping[str, _Counters]


class History:
    """The past of one process.

    Threads: `keep_up` is called on the host's loop, the rows are written in the recorder's thread. Everything else may
    be called from any thread.
    """

    def __init__(self, call_log: CallLog, sessions: Sized) -> None:
        self._call_log = call_log
        self._sessions = sessions
        mark = _Mark(time.monotonic(), {})
        self._marks: deque[_Mark] = deque([mark], maxlen=RECENT_SAMPLES)
        self._minute_mark, self._minute = mark, time.time() // MINUTE
        self._samples: deque[Sample] = deque(maxlen=KEPT_SAMPLES)
        self._minutes: deque[_Minute] = deque(maxlen=MAX_UNWRITTEN_MINUTES)
        self._figures: tuple[_Mark, dict[str, ServerFigures]] = (mark, {})

    def keep_up(self) -> None:
        """Take a sample if it is time for one. Call it every second."""
        if time.monotonic() - self._marks[-1].taken_at >= SAMPLE_SECONDS:
            self.take_sample()
        if time.time() // MINUTE != self._minute:
            self.end_minute()

    def take_sample(self) -> None:
        """Note what happened since the last sample."""
        previous, mark = self._marks[-1], self._mark()
        calls, errors, durations = _difference(previous, mark)
        seconds = max(mark.taken_at - previous.taken_at, 1e-3)
        p50, p95, p99 = _milliseconds(durations, 0.5, 0.95, 0.99)
        self._marks.append(mark)
        self._samples.append(
            Sample(
                round(time.time(), 1),
                round(calls / seconds, 2),
                round(errors / seconds, 2),
                p50,
                p95,
                p99,
                len(self._sessions),
                resident_bytes(),
            )
        )

    def end_minute(self) -> None:
        """Note what happened in the minute that is over."""
        mark = self._mark()
        calls, errors, durations = _difference(self._minute_mark, mark)
        p50, p95, p99 = _milliseconds(durations, 0.5, 0.95, 0.99)
        at = datetime.fromtimestamp(self._minute * MINUTE, UTC)
        self._minutes.append(_Minute(at, calls, errors, len(self._sessions), p50, p95, p99, resident_bytes()))
        self._minute_mark, self._minute = mark, time.time() // MINUTE

    def samples(self) -> list[Sample]:
        """The samples of the last hour, the oldest first."""
        return list(self._samples)

    def server_figures(self) -> dict[str, ServerFigures]:
        """What each server that was called did lately."""
        marks = list(self._marks)
        newest, oldest = marks[-1], marks[0]
        known, figures = self._figures
        if known is not newest:
            figures = {name: _figures(marks, name) for name in newest.servers}
            self._figures = (newest, figures)
        previous = marks[-2] if len(marks) > 1 else oldest
        now = time.monotonic()
        return {
            name: figures.get(name, _NO_FIGURES)._replace(
                calls_per_second=(traffic.calls - previous.servers.get(name, _NOTHING).calls)
                / max(now - previous.taken_at, 1.0),
                errors=traffic.errors - oldest.servers.get(name, _NOTHING).errors,
            )
            for name, traffic in self._call_log.traffics().items()
        }

    def _mark(self) -> _Mark:
        known = self._marks[-1].servers
        return _Mark(
            time.monotonic(),
            {name: _counters(traffic, known.get(name)) for name, traffic in self._call_log.traffics().items()},
        )

    # -- In the recorder's thread ------------------------------------------------------------------------------------

    def write_minutes(self, process_id: UUID) -> None:
        """Write the minutes that are over. Raises `django.db.DatabaseError`; they are written later then."""
        minutes = []
        while self._minutes:
            minutes.append(self._minutes.popleft())
        if not minutes:
            return
        try:
            MinuteRecord.objects.bulk_create(
                MinuteRecord(
                    at=minute.at,
                    process_id=process_id,
                    calls=minute.calls,
                    errors=minute.errors,
                    sessions=minute.sessions,
                    p50_ms=minute.p50_ms,
                    p95_ms=minute.p95_ms,
                    p99_ms=minute.p99_ms,
                    memory_bytes=minute.memory_bytes,
                )
                for minute in minutes
            )
        except DatabaseError:
            self._minutes.extendleft(reversed(minutes))
            raise

    def delete_old_minutes(self) -> None:
        """Delete the rows of minutes that are too old."""
        MinuteRecord.objects.filter(at__lt=timezone.now() - timedelta(days=KEPT_DAYS)).delete()


_NO_FIGURES: Final = ServerFigures(0.0, 0, None, None)


def _figures(marks: list[_Mark], name: str) -> ServerFigures:
    """What one server did between the first and the last of `marks`."""
    newest, oldest = marks[-1].servers[name], marks[0].servers.get(name, _NOTHING)
    if newest.calls == oldest.calls:
        return _NO_FIGURES
    p50, p95 = _milliseconds(list(map(sub, newest.durations, oldest.durations)), 0.5, 0.95)
    return ServerFigures(0.0, 0, p50, p95)


def _counters(traffic: ServerTraffic, known: _Counters | None) -> _Counters:
    """The counters of a server; the ones that are known if nothing has changed."""
    if known is not None and known.calls == traffic.calls:
        return known
    return _Counters(traffic.calls, traffic.errors, traffic.durations.copy())


def _difference(before: _Mark, after: _Mark) -> tuple[int, int, list[int]]:
    """Calls, errors and durations between two moments."""
    calls = errors = 0
    durations = _NOTHING.durations
    for name, counters in after.servers.items():
        earlier = before.servers.get(name, _NOTHING)
        if earlier is not counters:
            calls += counters.calls - earlier.calls
            errors += counters.errors - earlier.errors
            durations = list(map(add, durations, map(sub, counters.durations, earlier.durations)))
    return calls, errors, durations


def _milliseconds(durations: Iterable[int], *shares: float) -> list[float | None]:
    found = percentiles(list(durations), *shares)
    return [None if seconds is None else round(seconds * 1000, 2) for seconds in found]
