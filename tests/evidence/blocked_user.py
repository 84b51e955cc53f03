"""One user's call sleeps for 5 s in a version 1 module: calls of others, to that server and elsewhere, stay quick."""

from __future__ import annotations

import asyncio
import time

from tests.benchmarks.eras import Session
from tests.evidence.hosts import fresh_host, open_session, percentile
from tests.support.host_process import HostProcess
from tests.support.processes import PLAIN_SERVERS, ROOT

SLEEP_SECONDS = 5
MAX_P99_SECONDS = 0.1

SERVERS = f"{ROOT / 'tests' / 'servers' / 'calls'}:{PLAIN_SERVERS}"


def run(asgi_server: str) -> bool:
    with fresh_host(asgi_server, server_dirs=SERVERS) as host:
        return asyncio.run(_measure(host, asgi_server))


async def _measure(host: HostProcess, asgi_server: str) -> bool:
    sleeper = await open_session(host, "version_1", "sleeper:key")
    same = await open_session(host, "version_1", "another:key")
    other = await open_session(host, "bystander", "another:key")
    for session in (sleeper, same, other):
        await session.call("echo", {"text": "warm"})
    sleeping = asyncio.create_task(sleeper.call("block", {"seconds": SLEEP_SECONDS}))
    await asyncio.sleep(0.2)
    latencies = await asyncio.gather(*(call_for(session, SLEEP_SECONDS - 0.7) for session in (same, other)))
    was_asleep = not sleeping.done()
    text, seconds = await sleeping
    for session in (sleeper, same, other):
        session.close()
    p99s = []
    for title, values in zip(("the same server", "another server"), latencies, strict=True):
        p99s.append(percentile(values, 99))
        print(
            f"{asgi_server}: while one user's call sleeps for {seconds:.1f} s, another user's calls to {title}: "
            f"{len(values)} calls, p50 {percentile(values, 50) * 1000:.1f} ms, p99 {p99s[-1] * 1000:.1f} ms "
            f"(limit {MAX_P99_SECONDS * 1000:.0f}), slowest {max(values) * 1000:.1f} ms"
        )
    return was_asleep and text == "blocked" and max(p99s) < MAX_P99_SECONDS


async def call_for(session: Session, seconds: float) -> list[float]:
    """Call one after the other, and return how long each took."""
    end = time.perf_counter() + seconds
    latencies: list[float] = []
    while time.perf_counter() < end:
        text, taken = await session.call("echo", {"text": "x"})
        assert text == "x"
        latencies.append(taken)
    return latencies
