"""What it costs that the handlers of version 1 modules run in threads: the same tool on version 1 and on version 2.

One session with one call at a time, so that the time of a call is the time of its way through the host, and nothing
that is done for other calls hides in it. Rounds are interleaved; the difference is taken within a round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from tests.benchmarks.client import Job
from tests.benchmarks.processes import Host, running
from tests.benchmarks.report import Series
from tests.benchmarks.workloads import ON_VERSION_1, ON_VERSION_2
from tests.support.processes import ProcessFailed

NAME: Final = "off-loop"

SERVERS: Final = Path(__file__).parent / "servers"

TARGET_MS: Final = 0.5
"""What the thread may add to one call."""


def measure(
    hosts: Sequence[Host],
    eras: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    warm_up_seconds: float,
    run_job: Callable[[Job, Series], None],
) -> list[Series]:
    """Measure both tools on every host of this project, and print what the threads add."""
    measured: list[Series] = []
    for host in hosts:
        if not host.is_ours or host.checks_keys:
            continue
        for era in eras:
            pair = {
                workload: Series("load", era, workload.name, host.name, host.title, [])
                for workload in (ON_VERSION_2, ON_VERSION_1)
            }
            try:
                with running(host, SERVERS) as target:
                    for _ in range(rounds):
                        for workload, series in pair.items():
                            job = Job(
                                kind="load",
                                era=era,
                                workload=workload.name,
                                port=target.port,
                                pid=target.pid,
                                session_keys=("bench:benchmark-key",),
                                sessions=1,
                                warm_up_seconds=warm_up_seconds,
                                seconds=seconds,
                            )
                            run_job(job, series)
            except ProcessFailed as failure:
                for series in pair.values():
                    series.fail(str(failure).splitlines()[0])
            measured += pair.values()
            print(_compare(pair[ON_VERSION_2], pair[ON_VERSION_1]), flush=True)
    return measured


def _compare(version_2: Series, version_1: Series) -> str:
    title = f"{version_1.era} · {version_1.title}: "
    if instead := version_2.instead or version_1.instead:
        return title + instead
    pairs = list(zip(version_2.rounds, version_1.rounds, strict=True))
    added_ms = median(late["p50_ms"] - early["p50_ms"] for early, late in pairs)
    added_cpu_ms = median(
        1000 / late["calls_per_cpu_second"] - 1000 / early["calls_per_cpu_second"] for early, late in pairs
    )
    usual_ms = median(early["p50_ms"] for early, _ in pairs)
    verdict = "target met" if added_ms <= TARGET_MS else "MISSED"
    return (
        f"{title}a call takes {usual_ms:.2f} ms in the lane; in a thread {added_ms:+.2f} ms, "
        f"{added_cpu_ms:+.2f} ms of CPU (target +{TARGET_MS} ms: {verdict})"
    )
