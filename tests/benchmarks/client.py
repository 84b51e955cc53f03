"""The load client, a process of its own: reads a job as JSON from stdin, writes what it measured as JSON to stdout.

It looks at the server's process from outside (CPU seconds, memory), at the very moments at which its own window opens
and closes. Every answer is checked; one wrong or lost answer ends the job with an error instead of a figure.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import json
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import psutil
import uvloop

from tests.benchmarks.eras import ERAS, Refused, Session, WrongAnswer
from tests.benchmarks.workloads import WORKLOADS, Workload

_OPEN_AT_ONCE: Final = 20
"""Sessions that shake hands at the same time: fewer than the shortest listen backlog measured here (Daphne's 50)."""

_WARM_UP_SESSIONS: Final = 20
"""Opened before memory is first read, so that what a process loads or builds once is not charged to the sessions."""

_KIB: Final = 1024


@dataclass(frozen=True)
class Job:
    """What to do to which host."""

    kind: Literal["load", "hold"]
    """``load``: call as fast as answers come. ``hold``: open sessions and leave them silent."""
    era: str
    workload: str
    port: int
    pid: int
    session_keys: tuple[str, ...]
    """Sessions take them in turn: one key means that they all share one instance."""
    sessions: int
    warm_up_seconds: float = 0.0
    seconds: float = 0.0


class ServerProcess:
    """The process under measurement and all of its children."""

    def __init__(self, pid: int) -> None:
        parent = psutil.Process(pid)
        self._processes = [parent, *parent.children(recursive=True)]

    def cpu_seconds(self) -> float:
        times = [process.cpu_times() for process in self._processes]
        return sum(spent.user + spent.system for spent in times)

    def unshared_kib(self) -> float:
        return sum(process.memory_full_info().uss for process in self._processes) / _KIB


async def open_sessions(job: Job, workload: Workload, count: int) -> list[Session]:
    """Open sessions, a few at a time. If one fails, close those that are open and raise what it raised."""
    keys = itertools.cycle(job.session_keys)
    waiting = [ERAS[job.era](job.port, workload.server_name, next(keys)) for _ in range(count)]
    sessions = list(waiting)

    async def open_in_turn() -> None:
        while waiting:
            await waiting.pop().open()

    openers = [asyncio.ensure_future(open_in_turn()) for _ in range(min(_OPEN_AT_ONCE, count))]
    try:
        await asyncio.gather(*openers)
    except BaseException:
        for opener in openers:
            opener.cancel()
        await asyncio.gather(*openers, return_exceptions=True)
        close_sessions(sessions)
        raise
    return sessions


def close_sessions(sessions: Iterable[Session]) -> None:
    for session in sessions:
        session.close()


async def checked_call(session: Session, workload: Workload, session_number: int, call_number: int) -> float:
    """Call once, and return the seconds that the right answer took."""
    arguments = workload.arguments(session_number, call_number)
    text, seconds = await session.call(workload.tool, arguments)
    if text != (expected := workload.answer(arguments)):
        raise WrongAnswer(f"{text!r} instead of {expected!r}")
    return seconds


async def load(job: Job) -> dict[str, float]:
    """Keep one call in flight on every session, and measure while all of them are busy."""
    workload, server = WORKLOADS[job.workload], ServerProcess(job.pid)
    sessions = await open_sessions(job, workload, job.sessions)
    gc.freeze()  # A collection of the client's own would be counted as the server's latency.
    gc.disable()
    latencies: list[float] = []
    is_over = False

    async def keep_calling(number: int, session: Session) -> None:
        for call_number in itertools.count():
            if is_over:
                return
            latencies.append(await checked_call(session, workload, number, call_number))

    callers = asyncio.gather(*(keep_calling(number, session) for number, session in enumerate(sessions)))
    try:
        await _either(callers, job.warm_up_seconds)
        latencies.clear()
        started, cpu, client_cpu = time.perf_counter(), server.cpu_seconds(), time.process_time()
        await _either(callers, job.seconds)
        seconds, cpu = time.perf_counter() - started, server.cpu_seconds() - cpu
        client_cpu, measured = time.process_time() - client_cpu, sorted(latencies)
        is_over = True
        await callers
    finally:
        callers.cancel()
        close_sessions(sessions)
    return {
        "calls": len(measured),
        "calls_per_second": len(measured) / seconds,
        "calls_per_cpu_second": len(measured) / cpu,
        "server_cpu_share": cpu / seconds,
        "client_cpu_share": client_cpu / seconds,
        "p50_ms": percentile(measured, 50) * 1000,
        "p99_ms": percentile(measured, 99) * 1000,
    }


async def _either(callers: asyncio.Future[Any], seconds: float) -> None:
    """Let the callers work for some seconds. They end early only with an error, which is raised here."""
    done, _ = await asyncio.wait({callers}, timeout=seconds)
    if done:
        await callers


async def hold(job: Job) -> dict[str, float]:
    """Open sessions, leave them silent, and return what each of them costs the server in memory."""
    workload, server = WORKLOADS[job.workload], ServerProcess(job.pid)
    if not ERAS[job.era].is_held_by_the_server:
        raise ValueError(f"a session of {job.era} is nothing that a server holds")
    warm = await open_sessions(job, workload, _WARM_UP_SESSIONS)
    for number, session in enumerate(warm):
        await checked_call(session, workload, number, 0)
        await session.release()
    before = await _settled_kib(server)
    held = await open_sessions(job, workload, job.sessions)
    for session in held:
        await session.release()
    after = await _settled_kib(server)
    # Those that were held must still be alive, or the figure would be that of an empty room.
    for number, session in enumerate(held[:: max(1, job.sessions // 10)]):
        await checked_call(session, workload, number, 1)
    close_sessions([*warm, *held])
    return {"sessions": job.sessions, "kib_per_session": (after - before) / job.sessions}


async def _settled_kib(server: ServerProcess) -> float:
    """Read the memory until it stands still: writers in the background may still be at work on the last sessions."""
    last = server.unshared_kib()
    for _ in range(20):
        await asyncio.sleep(0.3)
        now = server.unshared_kib()
        if abs(now - last) < 64:
            return now
        last = now
    return last


def percentile(ordered: Sequence[float], percent: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    fields: dict[str, Any] = json.load(sys.stdin)
    job = Job(**{**fields, "session_keys": tuple(fields["session_keys"])})
    try:
        outcome: dict[str, Any] = uvloop.run(load(job) if job.kind == "load" else hold(job))
    except Refused as refusal:
        if not refusal.means_not_served:
            raise
        outcome = {"not_served": str(refusal)}
    json.dump(outcome, sys.stdout)


def as_json(job: Job) -> str:
    return json.dumps(dataclasses.asdict(job))


if __name__ == "__main__":
    main()
