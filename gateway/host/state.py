"""Whether the host is well, and what is wrong with it. Everything comes from memory.

The database is judged by how its writer fares.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from gateway.alerts.troubles import causes_of_servers
from gateway.records.models import FLUSH_SECONDS

if TYPE_CHECKING:
    from gateway.host.host import Host
    from gateway.records.recorder import Recorder

DATABASE_LATE_SECONDS: Final = 3 * FLUSH_SECONDS + 5
"""How old the last write may be: a writer waits 5 s for SQLite's lock before it is told that there is none."""


@dataclass(frozen=True, slots=True)
class HostState:
    """What an operator reads first."""

    level: Literal["well", "degraded", "draining"]
    text: str


def host_state(host: "Host") -> HostState:
    """Whether the host is well, in one line."""
    if host.drain.is_begun:
        seconds = max(0.0, host.drain.seconds_left)
        return HostState("draining", f"Draining: the host was told to stop, and ends in {seconds:.0f} s at the latest.")
    causes = causes_of_servers([failure.name for failure in host.registry.failures], host.lane_watch.blocked_servers)
    if late := database_state(host.recorder):
        causes.append(late)
    if causes:
        return HostState("degraded", f"Degraded: {'; '.join(causes)}.")
    count = len(host.registry)
    return HostState("well", f"Well: {count} {'server is' if count == 1 else 'servers are'} being served.")


def is_database_late(recorder: "Recorder") -> bool:
    """Whether rows are not written in time."""
    last = recorder.last_flush
    return last is None or time.monotonic() - last > DATABASE_LATE_SECONDS or bool(recorder.last_error)


def database_state(recorder: "Recorder") -> str:
    """What is wrong with the database, as a part of a sentence; empty if nothing is."""
    if recorder.lacks_migrations:
        return "the database is not migrated"
    if not is_database_late(recorder):
        return ""
    if recorder.last_flush is None:
        since = "have not been written yet"
    else:
        since = f"have not been written for {time.monotonic() - recorder.last_flush:.0f} s"
    return f"rows {since}{f' ({recorder.last_error})' if recorder.last_error else ''}, so lists and history are late"
