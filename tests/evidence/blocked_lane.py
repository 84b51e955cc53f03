"""An async handler that calls time.sleep(5) in one server: calls to another stay quick meanwhile."""

from __future__ import annotations

import asyncio
import time

from tests.benchmarks.eras import Session
from tests.evidence.hosts import fresh_host, open_session, percentile

BLOCK_SECONDS = 5
CALLERS = 10
MAX_P99_SECONDS = 0.1


def run(asgi_server: str) -> bool:
    with fresh_host(asgi_server) as host:
        return asyncio.run(_measure(host, asgi_server))


async def _measure(host, asgi_server: str) -> bool:
    sessions = [await open_session(host, "bystander", f"caller-{number}:key") for number in range(CALLERS)]
    blocker = await open_session(host, "workshop", "blocker:key")
    usual = await _call_for(sessions, 2)
    blocking = asyncio.create_task(blocker.call("block", {"seconds": BLOCK_SECONDS}))
    await asyncio.sleep(0.2)
    meanwhile = await _call_for(sessions, BLOCK_SECONDS - 0.7)
    was_blocked = not blocking.done()
    text, blocked_seconds = await blocking
    for session in (*sessions, blocker):
        session.close()
    p99 = percentile(meanwhile, 99)
    print(
        f"{asgi_server}: {CALLERS} callers of another server, usually p50 {percentile(usual, 50) * 1000:.1f} ms, "
        f"p99 {percentile(usual, 99) * 1000:.1f} ms; while a handler blocks for {blocked_seconds:.1f} s: "
        f"{len(meanwhile)} calls, p50 {percentile(meanwhile, 50) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms "
        f"(limit {MAX_P99_SECONDS * 1000:.0f}), slowest {max(meanwhile) * 1000:.1f} ms"
    )
    return was_blocked and text == "blocked" and p99 < MAX_P99_SECONDS


async def _call_for(sessions: list[Session], seconds: float) -> list[float]:
    end = time.perf_counter() + seconds
    latencies: list[float] = []

    async def call(session: Session) -> None:
        while time.perf_counter() < end:
            text, taken = await session.call("echo", {"text": "x"})
            assert text == "x"
            latencies.append(taken)

    await asyncio.gather(*(call(session) for session in sessions))
    return latencies
