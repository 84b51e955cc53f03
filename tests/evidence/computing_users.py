"""Thirty-two users of a version 1 module compute at once: calls to another server stay quick.

Threads share the GIL, so each thread that computes delays all others. `compat.handler_threads` bounds how many may.
"""

from __future__ import annotations

import asyncio
import time

from tests.evidence.blocked_user import SERVERS, call_for
from tests.evidence.hosts import fresh_host, open_session, percentile
from tests.support.host_process import HostProcess

USERS = 32
COMPUTE_SECONDS = 0.5
MEASURED_SECONDS = 4
MAX_P99_SECONDS = 0.25


def run(asgi_server: str) -> bool:
    with fresh_host(asgi_server, server_dirs=SERVERS, GUMCP_CALL_TIMEOUT_SECONDS="60") as host:
        return asyncio.run(_measure(host, asgi_server))


async def _measure(host: HostProcess, asgi_server: str) -> bool:
    users = [await open_session(host, "version_1", f"user-{number}:key") for number in range(USERS)]
    other = await open_session(host, "bystander", "another:key")
    await other.call("echo", {"text": "warm"})
    before = await call_for(other, 1)
    end = time.perf_counter() + MEASURED_SECONDS
    answered = 0

    async def compute_again_and_again(session) -> None:
        nonlocal answered
        while time.perf_counter() < end:
            text, _ = await session.call("compute", {"seconds": COMPUTE_SECONDS})
            assert text == "computed"
            answered += 1

    computing = asyncio.gather(*(compute_again_and_again(session) for session in users))
    await asyncio.sleep(0.5)
    latencies = await call_for(other, MEASURED_SECONDS - 1)
    await computing
    for session in (*users, other):
        session.close()
    p99 = percentile(latencies, 99)
    print(
        f"{asgi_server}: {USERS} users compute ({answered} calls of {COMPUTE_SECONDS} s CPU were answered); calls to "
        f"another server: before, p99 {percentile(before, 99) * 1000:.1f} ms; meanwhile {len(latencies)} calls, "
        f"p50 {percentile(latencies, 50) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms "
        f"(limit {MAX_P99_SECONDS * 1000:.0f}), slowest {max(latencies) * 1000:.1f} ms"
    )
    return p99 < MAX_P99_SECONDS
