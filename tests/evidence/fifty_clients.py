"""50 clients at once on one session key, all using the same request ids: no answer is wrong, none is lost."""

from __future__ import annotations

import asyncio
import time

from tests.evidence.hosts import fresh_host, open_session, percentile

CLIENTS = 50
CALLS = 10_000


def run(asgi_server: str) -> bool:
    with fresh_host(asgi_server) as host:
        seconds, latencies, wrong = asyncio.run(_converse(host))
        answered = len(latencies)
        gauge = host.metric("gumcp_tool_calls_total", server="census", tool="echo", outcome="ok")
    lost = CALLS - answered - wrong
    print(
        f"{asgi_server}: {CLIENTS} clients, one key, the same ids: {answered} of {CALLS} calls right, {wrong} wrong, "
        f"{lost} lost, {answered / seconds:.0f} calls/s, p50 {percentile(latencies, 50) * 1000:.1f} ms, "
        f"p99 {percentile(latencies, 99) * 1000:.1f} ms; the host counted {gauge:.0f} calls"
    )
    return wrong == 0 and lost == 0 and gauge == CALLS


async def _converse(host) -> tuple[float, list[float], int]:
    sessions = [await open_session(host, "census", "everybody:key") for _ in range(CLIENTS)]
    latencies: list[float] = []
    wrong = 0

    async def call(number: int) -> None:
        nonlocal wrong
        for turn in range(CALLS // CLIENTS):
            text, seconds = await sessions[number].call("echo", {"text": f"{number}.{turn}"})
            if text == f"{number}.{turn}":
                latencies.append(seconds)
            else:
                wrong += 1

    started = time.perf_counter()
    await asyncio.gather(*(call(number) for number in range(CLIENTS)))
    seconds = time.perf_counter() - started
    for session in sessions:
        session.close()
    return seconds, latencies, wrong
