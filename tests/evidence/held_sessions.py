"""2 000 sessions opened, held, closed, three times: what one costs, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import time

import psutil

from tests.e2e.host_process import HostProcess
from tests.evidence.hosts import fresh_host, open_session

SESSIONS = 2_000
ROUNDS = 3
KEYS = 20
OPEN_AT_ONCE = 20

MAX_GROWTH_KIB = 2 * 1024
"""How much more memory the last round may leave behind than the first: what an allocator does, not a leak.

A leak of one object of 350 bytes for each session would be more than that in the two rounds between.
"""


def run(asgi_server: str) -> bool:
    with fresh_host(asgi_server) as host:
        return asyncio.run(_rounds(host, asgi_server))


async def _rounds(host: HostProcess, asgi_server: str) -> bool:
    process = psutil.Process(host.pid)
    # The first sessions load and build what a process needs once.
    await _close(await _open(host, 100))
    base_tasks, base_threads = await _census(host)
    base_fds = process.num_fds()
    residues, is_back = [], True
    for number in range(1, ROUNDS + 1):
        before = await _settled_kib(process)
        sessions = await _open(host, SESSIONS)
        for session in sessions:
            await session.release()
        gauge = host.metric("gumcp_active_connections", server="census")
        per_session = (await _settled_kib(process) - before) / SESSIONS
        text, _ = await sessions[-1].call("echo", {"text": "held"})
        await _close(sessions)
        tasks, threads = await _until_back(host, process, base_tasks, base_fds)
        fds, left = process.num_fds(), host.metric("gumcp_active_connections", server="census")
        residues.append(await _settled_kib(process))
        print(
            f"{asgi_server}, round {number}: {per_session:.1f} KiB a held session (gauge {gauge:.0f}); closed: "
            f"tasks {tasks} (base {base_tasks}), threads {threads} ({base_threads}), descriptors {fds} ({base_fds}), "
            f"gauge {left:.0f}, memory {residues[-1] / 1024:.1f} MiB"
        )
        is_back &= gauge == SESSIONS and left == 0 and text == "held"
        is_back &= tasks <= base_tasks and fds <= base_fds
    growth = residues[-1] - residues[0]
    print(f"{asgi_server}: memory after the last round against the first: {growth:+.0f} KiB (limit {MAX_GROWTH_KIB})")
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


async def _census(host: HostProcess) -> tuple[int, int]:
    session = await open_session(host, "census", "counter:key")
    text, _ = await session.call("count", {})
    session.close()
    tasks, threads = text.split()
    return int(tasks), int(threads)


async def _until_back(host: HostProcess, process: psutil.Process, tasks: int, fds: int) -> tuple[int, int]:
    end = time.monotonic() + 10
    while True:
        counted = await _census(host)
        if (counted[0] <= tasks and process.num_fds() <= fds) or time.monotonic() > end:
            return counted
        await asyncio.sleep(0.2)


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
