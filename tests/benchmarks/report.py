"""From the figures of all rounds to the tables that are printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

Figures = dict[str, float]

YARDSTICK: Final = "reference"
"""The host that ratios are taken to."""

COMPARED_TO: Final = {"daphne-keys": "daphne", "uvicorn-keys": "uvicorn"}
"""Hosts whose ratios are taken to another: what checking keys costs."""

TARGETS: Final[dict[tuple[str, str, str], tuple[str, float]]] = {
    **{("load", "sse", host): ("at least", 1.4) for host in ("daphne", "uvicorn")},
    **{("load", "2025", host): ("at least", 3.0) for host in ("daphne", "uvicorn")},
    **{("load", "2026", host): ("at least", 2.0) for host in ("daphne", "uvicorn")},
    **{("load", era, host): ("at least", 0.95) for era in ("sse", "2025", "2026") for host in COMPARED_TO},
    ("hold", "sse", "daphne"): ("at most", 0.7),
    ("hold", "sse", "uvicorn"): ("at most", 0.7),
}
"""What the project promises, as ratios to the reference or in `COMPARED_TO`: calls per CPU second, and memory per held
session."""

_RATIO_OF: Final = {"load": "calls_per_cpu_second", "hold": "kib_per_session"}


@dataclass
class Series:
    """The rounds of one host at one job, in the order in which they ran."""

    kind: str
    era: str
    workload: str
    host: str
    title: str
    rounds: list[Figures]
    instead: str | None = None
    """What is shown in place of figures: the host refuses this era, or an answer was wrong."""
    has_failed: bool = False

    def fail(self, reason: str) -> None:
        """Show what went wrong in place of figures; those of earlier rounds are not to be trusted either."""
        self.instead, self.has_failed = f"FAILED: {reason}", True


@dataclass(frozen=True)
class Column:
    heading: str
    figure: str
    show: Callable[[float], str]


_COLUMNS: Final = {
    "load": (
        Column("calls/s", "calls_per_second", "{:.0f}".format),
        Column("calls/CPU s", "calls_per_cpu_second", "{:.0f}".format),
        Column("p50 ms", "p50_ms", "{:.1f}".format),
        Column("p99 ms", "p99_ms", "{:.1f}".format),
        Column("client CPU", "client_cpu_share", "{:.0%}".format),
    ),
    "hold": (Column("KiB per session", "kib_per_session", "{:.1f}".format),),
}


def spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """``median (least-most)``, or the one value there is."""
    if len(values) == 1:
        return show(values[0])
    return f"{show(median(values))} ({show(min(values))}-{show(max(values))})"


def ratios(series: Series, yardstick: Series) -> list[float]:
    """Round by round, so that what slowed the machine in a round slowed both sides of its ratio."""
    figure = _RATIO_OF[series.kind]
    return [own[figure] / other[figure] for own, other in zip(series.rounds, yardstick.rounds, strict=False)]


def verdict(series: Series, measured: Sequence[float]) -> str:
    target = TARGETS.get((series.kind, series.era, series.host))
    if target is None or not measured:
        return ""
    direction, limit = target
    met = median(measured) >= limit if direction == "at least" else median(measured) <= limit
    return f"{direction} {limit}: {'met' if met else 'MISSED'}"


def table(heading: str, rows: Sequence[Series]) -> str:
    """One table for the hosts of one job."""
    columns = _COLUMNS[rows[0].kind]
    figured = {row.host: row for row in rows if row.instead is None}
    lines = [["host", *(column.heading for column in columns), "ratio", "target"]]
    for row in rows:
        if row.instead is not None:
            lines.append([row.title, row.instead])
            continue
        yardstick = figured.get(COMPARED_TO.get(row.host, YARDSTICK))
        measured = ratios(row, yardstick) if yardstick is not None and row is not yardstick else []
        cells = [spread([figures[column.figure] for figures in row.rounds], column.show) for column in columns]
        ratio = spread(measured, "{:.2f}".format) if measured else "1" if row is yardstick else "-"
        lines.append([row.title, *cells, ratio, verdict(row, measured)])
    full = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(len(line[index]) for line in full) for index in range(len(lines[0]))]
    widths[0] = max(len(line[0]) for line in lines)
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines]
    return "\n".join([heading, *(f"  {line}" for line in text)])


def as_data(series: Sequence[Series]) -> list[dict[str, Any]]:
    return [asdict(row) for row in series]
