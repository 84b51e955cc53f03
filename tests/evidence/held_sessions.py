"""2 000 sessions opened, held, closed: what one costs, and that nothing of them stays, three rounds on.

The round before the three tells what a session costs: it is the one that has to ask the system for memory. What it
asked for stays with the allocator and serves the rounds after it, which must get by with that.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import psutil

from tests.evidence.hosts import fresh_host, open_session
from tests.support.host_process import HostProcess

SESSIONS = 2_000
ROUNDS = 3
"""After the one that sets the mark."""
KEYS = 20
OPEN_AT_ONCE = 20

MAX_GROWTH_KIB = SESSIONS * (ROUNDS - 1)
"""How much more memory the last round may leave behind than the first: less than 1 KiB for each session in between.

The allocator alone moves by 2 or 3 MiB either way from round to round; the count of objects is the finer measure.
"""


def run(asgi_server: str) -> bool:
    with fresh_host(asgi_server, GUMCP_MAX_SESSIONS_PER_ADDRESS="0") as host:
        return asyncio.run(_rounds(host, asgi_server))


async def _rounds(host: HostProcess, asgi_server: str) -> bool:
    process = psutil.Process(host.pid)
    # The first sessions load and build what a process needs once.
    await _close(await _open(host, 100))
    base = await _census(host, process)
    print(f"{asgi_server}, base: {base}")
    residues, is_back = [], True
    for number in range(ROUNDS + 1):
        before = await _settled_kib(process)
        sessions = await _open(host, SESSIONS)
        for session in sessions:
            await session.release()
        gauge = host.metric("gumcp_active_connections", server="census")
        per_session = (await _settled_kib(process) - before) / SESSIONS
        text, _ = await sessions[-1].call("echo", {"text": "held"})
        await _close(sessions)
        left = await _until_back(host, process, base)
        residues.append(await _settled_kib(process))
        cost = f"{per_session:.1f} KiB a held session, " if number == 0 else ""
        print(
            f"{asgi_server}, round {number}: {cost}gauge {gauge:.0f}; closed: {left}; memory "
            f"{residues[-1] / 1024:.1f} MiB"
        )
        is_back &= gauge == SESSIONS and text == "held" and left.is_back_at(base)
        # What the first round has collected or built once is not counted for or against the others.
        base = left if number == 0 else base
    growth = residues[-1] - residues[1]
    print(f"{asgi_server}: memory from round 1 to {ROUNDS}: {growth:+.0f} KiB (limit {MAX_GROWTH_KIB})")
    return is_back and growth <= MAX_GROWTH_KIB


async def _open(host: HostProcess, count: int) -> list:
    slots = asyncio.Semaphore(OPEN_AT_ONCE)

    async def open_one(number: int):
        async with slots:
            return await open_session(host, "census", f"user-{number % KEYS}:key")

    return list(await asyncio.gather(*(open_one(number) for number in range(count))))


async def _close(sessions: list) -> None:
    for session in sessions:
        session.close()
    await asyncio.sleep(0)


@dataclass(frozen=True)
class Census:
    """What is alive in a host's process."""

    tasks: int
    threads: int
    objects: int
    descriptors: int
    gauge: int

    def is_back_at(self, base: Census) -> bool:
        """Whether nothing is left of the sessions: of 2 000, one object each would show."""
        return (
            self.tasks <= base.tasks
            and self.threads <= base.threads
            and self.objects <= base.objects + SESSIONS // 2
            and self.descriptors <= base.descriptors
            and self.gauge == 0
        )

    def __str__(self) -> str:
        return (
            f"{self.tasks} tasks, {self.threads} threads, {self.objects} objects, {self.descriptors} descriptors, "
            f"gauge {self.gauge}"
        )


async def _census(host: HostProcess, process: psutil.Process) -> Census:
    session = await open_session(host, "census", "counter:key")
    text, _ = await session.call("count", {})
    tasks, threads, objects = map(int, text.split())
    session.close()
    await asyncio.sleep(0.5)  # until the counting session itself is gone
    gauge = int(host.metric("gumcp_active_connections", server="census"))
    return Census(tasks, threads, objects, process.num_fds(), gauge)


async def _until_back(host: HostProcess, process: psutil.Process, base: Census) -> Census:
    end = time.monotonic() + 15
    while True:
        counted = await _census(host, process)
        if counted.is_back_at(base) or time.monotonic() > end:
            return counted


async def _settled_kib(process: psutil.Process) -> float:
    """Unshared memory once it stands still: rows are written for a moment after the last session."""
    last = process.memory_full_info().uss / 1024
    for _ in range(20):
        await asyncio.sleep(0.4)
        now = process.memory_full_info().uss / 1024
        if abs(now - last) < 64:
            return now
        last = now
    return last
