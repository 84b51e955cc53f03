"""What a host costs as it grows, by servers, sessions, users and the size of results: plots in `docs/growth`.

    python -m tests.evidence.growth [--server daphne] [--only sessions]

Each figure is CPU time of the host's process, so that it says what the host costs and not how fast this machine is at
the moment. A cost that grows faster than its cause (slope over 1.2 between the last two points) fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from tests.benchmarks.eras import ERAS, Session
from tests.evidence.hosts import fresh_host
from tests.evidence.plot import svg
from tests.support.host_process import HostProcess
from tests.support.processes import ROOT

Lines = dict[str, list[tuple[float, float]]]

SERVER: Final = ROOT / "tests" / "evidence" / "servers" / "growth"
PLOTS: Final = ROOT / "docs" / "growth"

SERVERS: Final = (1, 10, 30, 100)
SESSIONS: Final = (10, 100, 1_000, 10_000)
USERS: Final = (10, 100, 1_000, 10_000)
RESULT_BYTES: Final = tuple(1024 * 4**power for power in range(7))

CALLERS: Final = 20
"""How many sessions call at once where the cost of a call is measured."""
CALL_SECONDS: Final = 1.5
IDLE_SECONDS: Final = 3.0
OPEN_AT_ONCE: Final = 20
LARGEST_SLOPE: Final = 1.2

_ROOM: Final = {
    "GUMCP_MAX_SESSIONS": "20000",
    "GUMCP_MAX_SESSIONS_PER_KEY": "20000",
    "GUMCP_MAX_SESSIONS_PER_ADDRESS": "0",
    "GUMCP_MAX_INSTANCES": "20000",
    "GUMCP_LOG_LEVEL": "ERROR",
    # A new interpreter, as users start it. Without this the host would be forked from a warm one.
    "PYTHONHASHSEED": "random",
}


class Host:
    """A host under measurement."""

    def __init__(self, process: HostProcess) -> None:
        self.process = process
        self.port = process.port
        self._of_system = psutil.Process(process.pid)

    @property
    def cpu_seconds(self) -> float:
        times = self._of_system.cpu_times()
        return times.user + times.system

    @property
    def memory_kib(self) -> float:
        return self._of_system.memory_full_info().uss / 1024

    async def settled_kib(self) -> float:
        last = self.memory_kib
        for _ in range(20):
            await asyncio.sleep(0.3)
            now = self.memory_kib
            if abs(now - last) < 256:
                return now
            last = now
        return last


@contextmanager
def host_with(asgi_server: str, servers: int = 1) -> Iterator[Host]:
    """A host with this many servers, which are called server-0, server-1, …"""
    with tempfile.TemporaryDirectory(prefix="gumcp-growth-") as folder:
        for number in range(servers):
            shutil.copytree(SERVER, Path(folder, f"server-{number}"))
        with fresh_host(asgi_server, server_dirs=folder, **_ROOM) as process:
            yield Host(process)


async def open_sessions(host: Host, keys: Sequence[tuple[str, str]]) -> list[Session]:
    """One Streamable HTTP session for each server and key, without a connection of its own."""
    sessions = [ERAS["2025"](host.port, server, key) for server, key in keys]
    waiting = list(sessions)

    async def open_in_turn() -> None:
        while waiting:
            session = waiting.pop()
            await session.open()
            await session.release()

    await asyncio.gather(*(open_in_turn() for _ in range(OPEN_AT_ONCE)))
    return sessions


async def milliseconds_of_a_call(host: Host, sessions: Sequence[Session], length: int = 2) -> float:
    """The host's CPU time for one call, while some sessions call without a pause."""
    calls, is_over = 0, False

    async def call_on_and_on(session: Session) -> None:
        nonlocal calls
        while not is_over:
            text, _ = await session.call("text", {"length": length})
            assert len(text) == length
            calls += 1

    callers = [asyncio.ensure_future(call_on_and_on(session)) for session in sessions[:CALLERS]]
    await asyncio.sleep(CALL_SECONDS / 3)
    before, cpu = calls, host.cpu_seconds
    await asyncio.sleep(CALL_SECONDS)
    done, spent = calls - before, host.cpu_seconds - cpu
    is_over = True
    await asyncio.gather(*callers)
    for session in sessions[:CALLERS]:
        await session.release()
    return 1000 * spent / max(done, 1)


def milliseconds_of_a_scrape(host: Host) -> float:
    """The host's CPU time for one scrape of its metrics."""
    host.process.metrics_text()
    cpu, scrapes = host.cpu_seconds, 10
    for _ in range(scrapes):
        host.process.metrics_text()
    return 1000 * (host.cpu_seconds - cpu) / scrapes


async def idle_share(host: Host) -> float:
    """How much of a core the host uses while nobody asks it for anything, in percent."""
    cpu = host.cpu_seconds
    await asyncio.sleep(IDLE_SECONDS)
    return 100 * (host.cpu_seconds - cpu) / IDLE_SECONDS


def by_servers(asgi_server: str) -> Iterator[tuple[str, str, str, Lines]]:
    """Start, memory and calls with 1 to 100 servers, each of which has been called."""
    start: Lines = {"start (s of CPU)": [], "memory (MiB)": [], "a call (ms)": [], "a scrape (ms)": []}
    for count in SERVERS:
        with host_with(asgi_server, count) as host:
            started = host.cpu_seconds

            async def measure(host: Host = host, count: int = count) -> tuple[float, float]:
                keys = [(f"server-{number % count}", "user") for number in range(max(count, CALLERS))]
                sessions = await open_sessions(host, keys)
                kib = await host.settled_kib()
                return await milliseconds_of_a_call(host, sessions), kib / 1024

            call, mebibytes = asyncio.run(measure())
            for line, value in zip(
                start.values(), (started, mebibytes, call, milliseconds_of_a_scrape(host)), strict=True
            ):
                line.append((count, value))
    yield "servers", "Servers of one host, each in use", "servers", start


def by_sessions(asgi_server: str) -> Iterator[tuple[str, str, str, Lines]]:
    """Calls, scrapes and idle time with 10 to 10 000 held sessions of one user."""
    lines: Lines = {"a session (KiB)": [], "a call (ms)": [], "a scrape (ms)": [], "idle (% of a core)": []}
    _fill(asgi_server, lines, SESSIONS, lambda number: "user")
    yield "sessions", "Held sessions of one user", "sessions", lines


def by_users(asgi_server: str) -> Iterator[tuple[str, str, str, Lines]]:
    """The same with 10 to 10 000 users, each with an instance and a session."""
    lines: Lines = {"a user (KiB)": [], "a call (ms)": [], "a scrape (ms)": [], "idle (% of a core)": []}
    _fill(asgi_server, lines, USERS, lambda number: f"user-{number}")
    yield "users", "Users with an instance and a session each", "users", lines


def _fill(asgi_server: str, lines: Lines, counts: Sequence[int], key: Callable[[int], str]) -> None:
    with host_with(asgi_server) as host:

        async def measure() -> None:
            sessions = await open_sessions(host, [("server-0", key(number)) for number in range(CALLERS)])
            await milliseconds_of_a_call(host, sessions)
            kib, numbers = await host.settled_kib(), itertools.count(CALLERS)
            held, memory, call, scrape, idle = 0, *lines.values()
            for count in counts:
                more = [("server-0", key(next(numbers))) for _ in range(count - held)]
                sessions += await open_sessions(host, more)
                held = count
                memory.append((count, max((await host.settled_kib() - kib) / count, 0.1)))
                idle.append((count, max(await idle_share(host), 0.1)))
                scrape.append((count, await asyncio.to_thread(milliseconds_of_a_scrape, host)))
                call.append((count, await milliseconds_of_a_call(host, sessions)))

        asyncio.run(measure())


def by_result(asgi_server: str) -> Iterator[tuple[str, str, str, Lines]]:
    """A call whose result has 1 KiB to 4 MiB."""
    lines: Lines = {"a call (ms)": []}
    with host_with(asgi_server) as host:

        async def measure() -> None:
            sessions = await open_sessions(host, [("server-0", "user")] * CALLERS)
            for size in RESULT_BYTES:
                lines["a call (ms)"].append((size / 1024, await milliseconds_of_a_call(host, sessions[:4], size)))

        asyncio.run(measure())
    yield "results", "Size of a result", "KiB", lines


SUBJECTS: Final = {"servers": by_servers, "sessions": by_sessions, "users": by_users, "results": by_result}


def slope(line: Sequence[tuple[float, float]]) -> float:
    """How steeply a line ends: 0 for a cost that stays, 1 for one in proportion."""
    (x_1, y_1), (x_2, y_2) = line[-2:]
    return math.log(max(y_2, 0.1) / max(y_1, 0.1)) / math.log(x_2 / x_1)


def run(asgi_server: str, subjects: Sequence[str] = tuple(SUBJECTS)) -> bool:
    PLOTS.mkdir(exist_ok=True)
    is_linear = True
    for subject in subjects:
        for name, title, x_label, lines in SUBJECTS[subject](asgi_server):
            for label, line in lines.items():
                figures = "  ".join(f"{x:g}: {y:.3g}" for x, y in line)
                steepness = slope(line)
                is_linear &= steepness <= LARGEST_SLOPE
                print(f"{asgi_server}, {title}, {label}: {figures}  (slope {steepness:.2f})", flush=True)
            text = svg(f"{title} ({asgi_server})", x_label, "each in its unit", lines)
            (PLOTS / f"{name}-{asgi_server}.svg").write_text(text)
    return is_linear


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.evidence.growth", description=__doc__)
    parser.add_argument("--server", choices=["daphne", "uvicorn"], default="daphne")
    parser.add_argument("--only", choices=list(SUBJECTS), action="append")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    started = time.monotonic()
    is_linear = run(arguments.server, arguments.only or tuple(SUBJECTS))
    print(f"{'Nothing' if is_linear else 'SOMETHING'} grows faster than its cause ({time.monotonic() - started:.0f} s)")
    return 0 if is_linear else 1


if __name__ == "__main__":
    sys.exit(main())
