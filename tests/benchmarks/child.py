"""What a process of its own costs: the same folder in the host's process and in a child.

Three figures for each era. Throughput: twenty sessions of one user, one call in flight on each. Delay: one session with one
call at a time. Memory and start, once: the proportional set size of the child's processes, and the time of a first call.
Rounds are interleaved; ratios and differences are taken within a round.
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
from tests.benchmarks.processes import REFERENCE, Host, Running, running
from tests.benchmarks.report import Series
from tests.benchmarks.workloads import IN_CHILD, IN_HOST, Workload
from tests.support.processes import ProcessFailed

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
        if host.name == REFERENCE.name or host.checks_keys:
            continue
        for era in eras:
            series = {
                (workload, sessions): Series("load", era, workload.name, host.name, host.title, [])
                for workload in (IN_HOST, IN_CHILD)
                for sessions in (MANY_SESSIONS, 1)
            }
            try:
                with _servers() as servers, running(host, servers) as target:
                    cost = _cost_of_a_child(target, era, run_job)
                    for _ in range(rounds):
                        for (workload, sessions), row in series.items():
                            run_job(_job(target, era, workload, sessions, warm_up_seconds, seconds), row)
            except ProcessFailed as failure:
                for row in series.values():
                    row.fail(str(failure).splitlines()[0])
                cost = ""
            measured += series.values()
            print(f"{era} · {host.title}: {_compare(series)}; {cost}", flush=True)
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


def _cost_of_a_child(target: Running, era: str, run_job: RunJob) -> str:
    """Start the child with a first call, and say what it takes."""
    host = psutil.Process(target.pid)
    found: dict[int, float] = {}
    import threading

    started = time.perf_counter()
    row = Series("load", era, IN_CHILD.name, target.host.name, target.host.title, [])
    run_job(_job(target, era, IN_CHILD, 1, 0.0, 0.1), row)
    del found, threading
    seconds = time.perf_counter() - started
    sizes = {child.name(): child.memory_full_info().pss / 2**20 for child in host.children(recursive=True)}
    return f"{sizes} {seconds}"


def _compare(series: dict[tuple[Workload, int], Series]) -> str:
    if instead := next((row.instead for row in series.values() if row.instead), None):
        return instead
    rounds = {key: row.rounds for key, row in series.items()}
    many = list(zip(rounds[IN_HOST, MANY_SESSIONS], rounds[IN_CHILD, MANY_SESSIONS], strict=True))
    one = list(zip(rounds[IN_HOST, 1], rounds[IN_CHILD, 1], strict=True))
    ratio = median(child["calls_per_second"] / host["calls_per_second"] for host, child in many)
    added_ms = median(child["p50_ms"] - host["p50_ms"] for host, child in one)
    return (
        f"{median(host['calls_per_second'] for host, _ in many):.0f} calls/s in the host, "
        f"{median(child['calls_per_second'] for _, child in many):.0f} through a child, ratio {ratio:.2f} "
        f"(target {TARGET_RATIO}: {'met' if ratio >= TARGET_RATIO else 'MISSED'}); "
        f"one call {median(host['p50_ms'] for host, _ in one):.2f} ms and {added_ms:+.2f} ms "
        f"(target +{TARGET_MS} ms: {'met' if added_ms <= TARGET_MS else 'MISSED'})"
    )
