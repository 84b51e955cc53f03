"""``python -m tests.faults.soak``: all kinds of clients at once for an hour, and whether anything grows meanwhile.

Callers of every era, sessions that come and go, clients that vanish, never read or never finish their request,
garbage, failing and slow tools. Every answer is checked. Memory, tasks and descriptors are read every ten seconds; the
slope is of a straight line through all readings after the first quarter, in which caches fill.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from tests.benchmarks.eras import ERAS, SseSession
from tests.faults.figures import Watched, milliseconds
from tests.faults.vanishing import vanish
from tests.support.host_process import HostProcess, fresh_host

READ_SECONDS = 10.0

BREAKS_SECONDS = 30.0
"""How often sessions of the steady callers are opened anew."""


class Soak:
    """The clients of one host, and what became of their calls."""

    def __init__(self, host: HostProcess, seconds: float) -> None:
        self._host = host
        self._end = time.monotonic() + seconds
        self._numbers = iter(range(sys.maxsize))
        self.counts: Counter[str] = Counter()
        self.latencies: list[float] = []

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def key(self) -> str:
        # A bounded number of users: instances are kept for half an hour, and are no leak.
        return f"soaker-{next(self._numbers) % 40}:key"

    async def keep(self, what: str, act: Callable[[], Awaitable[None]]) -> None:
        while not self.is_over:
            try:
                await act()
                self.counts[what] += 1
            except Exception as error:
                self.counts[f"FAILED {what}"] += 1
                print(f"{what}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                await asyncio.sleep(1)

    def caller(self, era: str) -> Callable[[], Awaitable[None]]:
        async def call_for_a_while() -> None:
            session = ERAS[era](self._host.port, "workshop", self.key())
            await session.open()
            until = min(self._end, time.monotonic() + random.uniform(1, BREAKS_SECONDS))
            try:
                while time.monotonic() < until:
                    text = str(next(self._numbers))
                    answer, seconds = await session.call("echo", {"text": text})
                    assert answer == text
                    self.latencies.append(seconds)
                    self.counts["calls"] += 1
                    await asyncio.sleep(0.02)
            finally:
                session.close()

        return call_for_a_while

    async def vanish(self) -> None:
        session = SseSession(self._host.port, "workshop", self.key())
        await session.open()
        await session.call("echo", {"text": "x"})
        vanish(session)
        await asyncio.sleep(0.3)

    async def leave_in_a_call(self) -> None:
        session = SseSession(self._host.port, "workshop", self.key())
        await session.open()
        call = asyncio.ensure_future(session.call("wait", {"seconds": 30}))
        await asyncio.sleep(0.2)
        session.close()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    async def call_what_fails(self) -> None:
        session = ERAS["2025"](self._host.port, "workshop", self.key())
        await session.open()
        try:
            for _ in range(5):
                with contextlib.suppress(Exception):
                    await session.call("fail", {})
        finally:
            session.close()
        await asyncio.sleep(0.5)

    async def never_read(self) -> None:
        session = SseSession(self._host.port, "workshop", self.key())
        await session.open()
        assert session._stream is not None
        assert session._stream._transport is not None
        session._stream._transport.pause_reading()
        for _ in range(6):
            call = asyncio.ensure_future(session.call("fill", {"characters": 512 * 1024}))
            await asyncio.sleep(0.2)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        await asyncio.sleep(12)
        session.close()

    async def send(self, data: bytes, pause: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._host.port)
        try:
            writer.write(data)
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(4096), pause)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def drip(self) -> None:
        await self.send(b"POST /workshop/drip HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{", 20)

    async def talk_nonsense(self) -> None:
        await self.send(random.randbytes(300) + b"\r\n\r\n", 1)
        await asyncio.sleep(0.2)

    async def break_pages(self) -> None:
        for moment in ("before", "stream", "page", "end"):
            await self.send(b"GET /boom/%b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % moment.encode(), 1)
        await asyncio.sleep(2)

    async def probe(self) -> None:
        answer = await asyncio.to_thread(self._host.request, "GET", "/health_check")
        assert answer.status == 200
        await asyncio.sleep(0.5)

    async def run(self) -> list[dict[str, float]]:
        """Let all of them work until the end; returns the readings."""
        acts = [
            *((f"callers of {era}", self.caller(era)) for era in ERAS for _ in range(4)),
            *(("vanished", self.vanish) for _ in range(2)),
            *(("left in a call", self.leave_in_a_call) for _ in range(2)),
            ("called what fails", self.call_what_fails),
            *(("never read", self.never_read) for _ in range(2)),
            *(("dripped", self.drip) for _ in range(5)),
            ("talked nonsense", self.talk_nonsense),
            ("broke pages", self.break_pages),
            ("probed health", self.probe),
        ]
        readings: list[dict[str, float]] = []
        async with asyncio.TaskGroup() as group:
            for what, act in acts:
                group.create_task(self.keep(what, act))
            group.create_task(self._read(readings))
        return readings

    async def _read(self, readings: list[dict[str, float]]) -> None:
        watched, started = Watched(self._host.pid), time.monotonic()
        while not self.is_over:
            inside: dict[str, Any] = (await asyncio.to_thread(self._host.request, "GET", "/inside/")).json
            reading = {
                "minutes": (time.monotonic() - started) / 60,
                "MiB": await asyncio.to_thread(lambda: watched.mib),
                "descriptors": watched.descriptors,
                "tasks": inside["tasks"] + sum(inside["lane_tasks"].values()),
                "threads": inside["threads"],
                "sessions": inside["sessions"],
            }
            readings.append(reading)
            print("  ".join(f"{name} {value:.1f}" for name, value in reading.items()), flush=True)
            await asyncio.sleep(min(READ_SECONDS, max(0.0, self._end - time.monotonic())))


def slope(readings: list[dict[str, float]], name: str) -> float:
    """How much it grows in an hour."""
    later = readings[len(readings) // 4 :]
    minutes, values = [reading["minutes"] for reading in later], [reading[name] for reading in later]
    return statistics.linear_regression(minutes, values).slope * 60


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="default: %(default)s")
    parser.add_argument("--server", choices=["daphne", "uvicorn"], default="daphne", help="default: %(default)s")
    arguments = parser.parse_args()
    # Sessions that nobody ends, and readers that do not read, go within minutes: what is left then is a leak.
    settings = {
        "GUMCP_SESSION_IDLE_SECONDS": "60",
        "GUMCP_SLOW_READER_SECONDS": "10",
        "GUMCP_LOG_LEVEL": "ERROR",
    }
    application = "tests.faults.probe:application"
    with fresh_host(asgi_server=arguments.server, application=application, **settings) as host:
        soak = Soak(host, arguments.minutes * 60)
        readings = asyncio.run(soak.run())
        cut = host.metric("gumcp_slow_readers_total") + host.metric("gumcp_connection_faults_total")
    print(f"\n{arguments.minutes:g} minutes on {arguments.server}; {cut:.0f} clients cut or refused")
    for what, count in sorted(soak.counts.items()):
        print(f"  {what}: {count}")
    print(f"  latency of calls: {milliseconds(soak.latencies)}")
    for name in ("MiB", "tasks", "descriptors", "threads"):
        first, last = readings[len(readings) // 4][name], readings[-1][name]
        print(
            f"  {name}: {first:.1f} after a quarter, {last:.1f} at the end, slope {slope(readings, name):+.2f} an hour"
        )
    return int(any(what.startswith("FAILED") for what in soak.counts))


if __name__ == "__main__":
    sys.exit(main())
