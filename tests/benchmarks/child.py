"""What a process of its own costs: the same folder in the host's process and in a child.

Throughput: twenty sessions of one user, one call in flight on each. Delay: one session with one call at a time. Rounds
are interleaved; ratios and differences are taken within a round. Once for each host: the time until a first user's
session is open, and the memory (proportional set size) of the processes that it started.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import psutil

from tests.benchmarks.client import Job
from tests.benchmarks.processes import Host, Running, running
from tests.benchmarks.report import Series
from tests.benchmarks.workloads import IN_CHILD, IN_HOST, Workload
from tests.support.processes import ProcessFailed
from tests.support.wire import SseStream

NAME: Final = "child"

SOURCE: Final = Path(__file__).parent / "servers" / "echo-version-2"

MANY_SESSIONS: Final = 20

TARGET_RATIO: Final = 0.6
"""The least throughput through a child, as a part of that in the host's process."""

TARGET_MS: Final = 1.0
"""What the relay may add to one call."""

RunJob = Callable[[Job, Series], None]


def measure(
    hosts: Sequence[Host],
    eras: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    warm_up_seconds: float,
    run_job: RunJob,
) -> list[Series]:
    """Measure both folders on every host of this project, and print what the child costs."""
    measured: list[Series] = []
    for host in hosts:
        if not host.is_ours or host.checks_keys:
            continue
        rows = {
            (era, workload, sessions): Series("load", era, workload.name, host.name, host.title, [])
            for era in eras
            for workload in (IN_HOST, IN_CHILD)
            for sessions in (MANY_SESSIONS, 1)
        }
        try:
            with _servers() as servers, running(host, servers) as target:
                print(f"{host.title}: {_cost_of_a_child(target)}", flush=True)
                for _ in range(rounds):
                    for (era, workload, sessions), series in rows.items():
                        run_job(_job(target, era, workload, sessions, warm_up_seconds, seconds), series)
        except ProcessFailed as failure:
            for series in rows.values():
                series.fail(str(failure).splitlines()[0])
        for era in eras:
            print(f"{era} · {host.title}: {_compare(era, rows)}", flush=True)
        measured += rows.values()
    return measured


@contextmanager
def _servers() -> Iterator[Path]:
    """A server directory with the folder twice: once served in the host, once in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="gumcp-bench-servers-") as scratch:
        for workload, isolation in ((IN_HOST, "none"), (IN_CHILD, "process")):
            folder = Path(scratch) / workload.server_name
            shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
            (folder / "server.json").write_text(json.dumps({"gumcp": {"isolation": isolation}}))
        yield Path(scratch)


def _job(target: Running, era: str, workload: Workload, sessions: int, warm_up_seconds: float, seconds: float) -> Job:
    return Job(
        kind="load",
        era=era,
        workload=workload.name,
        port=target.port,
        pid=target.pid,
        session_keys=("bench:benchmark-key",),
        sessions=sessions,
        warm_up_seconds=warm_up_seconds,
        seconds=seconds,
    )


def _cost_of_a_child(target: Running) -> str:
    """Open a first user's session with each folder, and say what that takes."""
    seconds: list[float] = []
    host = psutil.Process(target.pid)
    others = set(host.children(recursive=True))
    for workload in (IN_HOST, IN_CHILD):
        started = time.perf_counter()
        with SseStream(target.port, f"/{workload.server_name}/first:key") as stream:
            stream.initialize()
            seconds.append(time.perf_counter() - started)
    sizes = [process.memory_full_info().pss / 2**20 for process in set(host.children(recursive=True)) - others]
    return (
        f"a first session after {seconds[0]:.2f} s in the host, {seconds[1]:.2f} s in a child; "
        f"the child's processes take {' and '.join(f'{size:.0f}' for size in sorted(sizes))} MiB"
    )


def _compare(era: str, rows: dict[tuple[str, Workload, int], Series]) -> str:
    own = {key[1:]: series for key, series in rows.items() if key[0] == era}
    if instead := next((series.instead for series in own.values() if series.instead), None):
        return instead
    many = list(zip(own[IN_HOST, MANY_SESSIONS].rounds, own[IN_CHILD, MANY_SESSIONS].rounds, strict=True))
    one = list(zip(own[IN_HOST, 1].rounds, own[IN_CHILD, 1].rounds, strict=True))
    ratio = median(child["calls_per_second"] / host["calls_per_second"] for host, child in many)
    added_ms = median(child["p50_ms"] - host["p50_ms"] for host, child in one)
    return (
        f"{median(host['calls_per_second'] for host, _ in many):.0f} calls/s in the host, "
        f"{median(child['calls_per_second'] for _, child in many):.0f} through a child, ratio {ratio:.2f} "
        f"(at least {TARGET_RATIO}: {'met' if ratio >= TARGET_RATIO else 'MISSED'}); "
        f"one call {median(host['p50_ms'] for host, _ in one):.2f} ms and {added_ms:+.2f} ms "
        f"(at most +{TARGET_MS} ms: {'met' if added_ms <= TARGET_MS else 'MISSED'})"
    )
