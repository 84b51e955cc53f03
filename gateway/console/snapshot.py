"""What the host does at this moment, as the overview shows it: texts in tables, made once for all who look.

Everything comes from memory, so it also works while the database is locked. The page that the server renders and the
script that keeps it up to date read the same tables.
"""

import os
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from heapq import nlargest
from operator import attrgetter, itemgetter
from typing import Any, Final
from urllib.parse import urlencode

from gateway.host.database_state import database_state
from gateway.host.host import Host
from gateway.host.state import host_state
from gateway.instances.traffic import Failure
from gateway.metrics import version_label
from gateway.printable import printable
from gateway.process_memory import resident_bytes
from gateway.records.history import Sample, ServerFigures
from gateway.records.models import HostProcess

MAX_ROWS: Final = 10
"""Rows of the tables that name the busiest or the most frequent."""

MAX_SESSION_ROWS: Final = 15
"""Rows of the table of open sessions; the rest is one row."""

MAX_SHOWN: Final = 60
"""Longest text of a cell that somebody else chose, in characters."""

BAD: Final = "bad"
WARN: Final = "warn"
GOOD: Final = ""

SLOW_LANE_SECONDS: Final = 0.1
"""From this lag on, a lane is shown as slow."""

_SessionCounts = Counter[tuple[str, str, str, str]]
"""(server, transport, version, client) -> how many sessions are open."""

_FACTS: Final = attrgetter("server_name", "transport", "protocol_version", "client_name")

CALLS: Final = "records/callrecord/"
SERVERS: Final = "records/serverrecord/"
SESSIONS: Final = "records/sessionrecord/"
"""Where rows lead, relative to the admin's first page. The threads here do not know the path of the host."""

Row = dict[str, Any]
"""`level`: BAD, WARN or GOOD; `href`: where the first cell leads, or nothing; `cells`: its texts."""

Table = dict[str, Any]
"""`id`, `title`, `note`, `columns` (a text and whether it has numbers), `rows`, `nothing`: the text without rows."""


def take_snapshot(host: Host) -> dict[str, Any]:
    """What the overview shows now. May be called from any thread."""
    now = time.time()
    sessions: _SessionCounts = Counter(map(_FACTS, host.sessions))
    state = host_state(host)
    samples, servers = host.recorder.history.samples(), host.recorder.history.server_figures()
    return {
        "at": round(now, 1),
        "state": {"level": state.level, "text": state.text},
        "late": database_state(host.recorder),
        "of": _whose_figures(host),
        "figures": _figures(host, samples, servers),
        "tables": [
            _servers(host, servers, sessions, now),
            _sessions(sessions),
            _refusals(host),
            _users(host),
            _tools(host),
            _lanes(host),
            _processes(host, now),
        ],
        "point": point(samples[-1]) if samples else None,
    }


def point(sample: Sample) -> list[float | None]:
    """A sample as the plots take it."""
    return [
        sample.at,
        sample.calls_per_second,
        sample.errors_per_second,
        sample.p50_ms,
        sample.p95_ms,
        sample.p99_ms,
        sample.sessions,
        round(sample.memory_bytes / 2**20, 1),
    ]


def _whose_figures(host: Host) -> str:
    """A sentence for hosts of several processes: whose figures these are."""
    others = len(host.recorder.processes) - 1
    if others < 1:
        return ""
    return (
        f"These are the figures of one process of {others + 1} (process {os.getpid()}). "
        "What the others do is in the table of processes."
    )


def _figures(host: Host, samples: list[Sample], servers: Mapping[str, ServerFigures]) -> list[dict[str, str]]:
    newest = samples[-1] if samples else None
    return [
        _figure("Calls a second", f"{sum(server.calls_per_second for server in servers.values()):,.1f}"),
        _figure("Errors in the last minute", f"{sum(server.errors for server in servers.values()):,}"),
        _figure("Median duration", _duration(newest and newest.p50_ms)),
        _figure("95th percentile", _duration(newest and newest.p95_ms)),
        _figure("Open sessions", f"{len(host.sessions):,}"),
        _figure("Event streams", f"{len(host.streams):,}"),
        _figure("Instances", f"{len(host.instances):,}"),
        _figure("Memory", f"{resident_bytes() / 2**20:,.0f} MiB"),
    ]


def _figure(label: str, value: str) -> dict[str, str]:
    return {"label": label, "value": value}


def _servers(host: Host, figures: Mapping[str, ServerFigures], sessions: _SessionCounts, now: float) -> Table:
    traffics = host.call_log.traffics()
    open_sessions: dict[str, int] = {}
    for (server_name, _, _, _), count in sessions.items():
        open_sessions[server_name] = open_sessions.get(server_name, 0) + count
    conditions = host.recorder.conditions
    failures = {failure.name: failure for failure in host.registry.failures}
    found: list[tuple[int, float, str, Row]] = []
    served = set(host.registry.names)
    for name in served | set(failures):
        server = figures.get(name, _NO_FIGURES)
        traffic = traffics.get(name)
        failure = traffic.last_failure if traffic is not None else None
        level, state = GOOD, "loaded"
        if name not in served:
            level, state = BAD, f"not loaded: {failures[name].reason}"
        elif not host.policies.get(name).is_enabled:
            level, state = WARN, "switched off"
        elif name in conditions:
            level, state = BAD, conditions[name]
        elif name in failures:
            level, state = BAD, f"its newer code does not load: {failures[name].reason}"
        elif failure is not None and now - failure.at < 60:
            level = WARN
        cells = [
            name,
            _shown(state),
            f"{open_sessions.get(name, 0):,}",
            f"{server.calls_per_second:,.1f}",
            f"{server.errors:,}",
            _duration(server.p50_ms),
            _duration(server.p95_ms),
            _failure(failure, now),
        ]
        row = _row(cells, level, _link(SERVERS, q=name))
        found.append(((BAD, WARN, GOOD).index(level), -server.calls_per_second, name, row))
    found.sort(key=itemgetter(0, 1, 2))
    columns = ["Server", "State", "#Sessions", "#Calls/s", "#Errors", "#p50", "#p95", "Last failure"]
    note = (
        "Those that failed come first. Calls/s: of the last 10 to 20 seconds. Errors and durations: of the last minute."
    )
    return _table("servers", "Servers", note, columns, [row for *_, row in found], "There are no servers yet.")


def _sessions(sessions: _SessionCounts) -> Table:
    groups: dict[tuple[str, str, str], int] = {}
    for (_, transport, version, client), count in sessions.items():
        group = (version, transport, client)
        groups[group] = groups.get(group, 0) + count
    most = nlargest(MAX_SESSION_ROWS, groups.items(), key=itemgetter(1))
    rows = [
        _row(
            [_shown(client) or "(says nothing)", version_label(version), transport, f"{count:,}"],
            href=_link(SESSIONS, q=client) if client else "",
        )
        for (version, transport, client), count in most
    ]
    if others := sum(groups.values()) - sum(count for _, count in most):
        rows.append(_row(["(other clients)", "", "", f"{others:,}"]))
    note = "Clients of 2026-07-28 have no sessions; their calls count in all other tables."
    return _table("sessions", "Open sessions", note, ["Client", "Era", "Transport", "#Open"], rows, "None is open.")


def _refusals(host: Host) -> Table:
    counts = host.call_log.refusals.counts()
    rows = [
        _row([reason.replace("_", " "), f"{count:,}"], WARN, f"{CALLS}?outcome=refused")
        for reason, count in nlargest(MAX_ROWS, counts.items(), key=itemgetter(1))
    ]
    note = f"Since {_clock(host.call_log.refusals.since)}."
    return _table("refusals", "Refusals", note, ["Reason", "#Refused"], rows, "Nothing was refused.")


def _users(host: Host) -> Table:
    counts = host.call_log.users.counts()
    rows = [
        _row([_shown(name), f"{count:,}"], href=_link(CALLS, user_id=name))
        for name, count in nlargest(MAX_ROWS, counts.items(), key=itemgetter(1))
    ]
    note = f"Since {_clock(host.call_log.users.since)}."
    return _table("users", "Busiest users", note, ["User", "#Calls"], rows, "Nobody has called a tool.")


def _tools(host: Host) -> Table:
    traffics = host.call_log.traffics()
    counts = {
        (server_name, tool): count
        for server_name, traffic in traffics.items()
        for tool, count in traffic.tools.counts().items()
    }
    rows = [
        _row(
            [_shown(tool), server_name, f"{count:,}"],
            href=_link(CALLS, server_name=server_name, tool=tool),
        )
        for (server_name, tool), count in nlargest(MAX_ROWS, counts.items(), key=itemgetter(1))
    ]
    # The same as for users: these are the same calls.
    note = f"Since {_clock(host.call_log.users.since)}."
    return _table("tools", "Busiest tools", note, ["Tool", "Server", "#Calls"], rows, "No tool was called.")


def _lanes(host: Host) -> Table:
    blocked = set(host.lane_watch.blocked_servers)
    stuck = {calls.server_name: calls.stuck for calls in host.instances.calls}
    lanes = [(lane.name in blocked, stuck.get(lane.name, 0), lane.lag_seconds, lane.name) for lane in host.lanes]
    rows = [
        _row(
            [name, f"{lag * 1000:,.1f} ms", f"{count:,}"],
            BAD if is_blocked or count else WARN if lag >= SLOW_LANE_SECONDS else GOOD,
        )
        for is_blocked, count, lag, name in nlargest(MAX_ROWS, lanes)
    ]
    note = "The threads of the servers, those that are blocked or late first."
    return _table("lanes", "Lanes", note, ["Server", "#Lag", "#Stuck calls"], rows, "No server has been used yet.")


def _processes(host: Host, now: float) -> Table:
    own_id = host.recorder.process_id
    rows = [_process(process, now, is_this=process.id == own_id) for process in host.recorder.processes]
    columns = ["Process", "#Sessions", "#Calls/s", "#p95", "#Memory", "Started", "Last seen"]
    note = "From the rows that each writes every three seconds."
    return _table("processes", "Processes", note, columns, rows, "None has written its row.")


def _process(process: HostProcess, now: float, *, is_this: bool) -> Row:
    name = f"{process.hostname}:{process.pid}"
    seen = process.last_seen_at.timestamp()
    return _row(
        [
            f"{name} (this one)" if is_this else name,
            f"{process.open_sessions:,}",
            f"{process.calls_per_second:,.1f}",
            _duration(process.p95_ms),
            f"{process.memory_bytes / 2**20:,.0f} MiB",
            _ago(process.started_at.timestamp(), now),
            _ago(seen, now),
        ],
        WARN if now - seen > 10 else GOOD,
    )


_NO_FIGURES: Final = ServerFigures(0.0, 0, None, None)


def _table(name: str, title: str, note: str, columns: list[str], rows: list[Row], nothing: str) -> Table:
    """`columns`: those with a # in front have numbers."""
    return {
        "id": name,
        "title": title,
        "note": note,
        "columns": [{"text": column.lstrip("#"), "is_number": column.startswith("#")} for column in columns],
        "rows": rows,
        "nothing": nothing,
    }


def _row(cells: list[str], level: str = GOOD, href: str = "") -> Row:
    return {"level": level, "href": href, "cells": cells}


@lru_cache(maxsize=1000)
def _link(page: str, **parameters: str) -> str:
    return f"{page}?{urlencode(parameters)}"


def _shown(text: str) -> str:
    """A text that somebody else chose: bounded, and with control and format characters as escapes."""
    text = printable(text[: 2 * MAX_SHOWN])
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _failure(failure: Failure | None, now: float) -> str:
    if failure is None:
        return "-"
    return f"{_shown(failure.tool)}: {failure.outcome}, {_ago(failure.at, now)}"


def _duration(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:,.1f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def _ago(then: float, now: float) -> str:
    seconds = max(0.0, now - then)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _clock(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%H:%M} UTC"
