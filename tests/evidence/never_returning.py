"""A hundred calls that never return: the bound holds, other servers stay quick, and the process ends on SIGTERM."""

from __future__ import annotations

import asyncio
import time

from tests.benchmarks.eras import WrongAnswer
from tests.evidence.blocked_user import SERVERS, call_for
from tests.evidence.hosts import fresh_host, open_session, percentile
from tests.support.host_process import HostProcess

CALLS = 100
BOUND = 32
LIMIT_SECONDS = 2
MAX_P99_SECONDS = 0.1
MAX_END_SECONDS = 10


def run(asgi_server: str) -> bool:
    with fresh_host(asgi_server, server_dirs=SERVERS, GUMCP_CALL_TIMEOUT_SECONDS=str(LIMIT_SECONDS)) as host:
        does_hold = asyncio.run(_measure(host, asgi_server))
        began = time.monotonic()
        host.terminate()
        seconds = time.monotonic() - began
        print(f"{asgi_server}: ended {seconds:.1f} s after SIGTERM, with {BOUND} calls stuck")
        return does_hold and seconds < MAX_END_SECONDS


async def _measure(host: HostProcess, asgi_server: str) -> bool:
    sessions = [await open_session(host, "version_1", f"user-{number}:key") for number in range(CALLS)]
    other = await open_session(host, "bystander", "user:key")
    await other.call("echo", {"text": "warm"})

    async def call_what_never_returns(session) -> tuple[str, float]:
        began = time.perf_counter()
        try:
            await session.call("block_until_file", {"path": "/nowhere/to/be/found"})
        except WrongAnswer as error:
            return str(error), time.perf_counter() - began
        return "returned", 0.0

    calls = asyncio.gather(*(call_what_never_returns(session) for session in sessions))
    latencies = await call_for(other, LIMIT_SECONDS + 2)
    outcomes = await calls
    latencies += await call_for(other, 1)
    stopped = [seconds for text, seconds in outcomes if "took longer than" in text]
    refused = [seconds for text, seconds in outcomes if f"limit {BOUND}" in text]
    stuck = host.metric("gumcp_stuck_calls", server="version_1")
    p99 = percentile(latencies, 99)
    for session in (*sessions, other):
        session.close()
    print(
        f"{asgi_server}: of {CALLS} calls {len(stopped)} were stopped, in a thread or waiting for one, and "
        f"{len(refused)} refused, all within {max([*stopped, *refused]):.1f} s; {stuck:.0f} are stuck "
        f"(gumcp_stuck_calls); calls to another server meanwhile: {len(latencies)}, p99 {p99 * 1000:.1f} ms "
        f"(limit {MAX_P99_SECONDS * 1000:.0f})"
    )
    return len(stopped) + len(refused) == CALLS and stuck == BOUND and p99 < MAX_P99_SECONDS
