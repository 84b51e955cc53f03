"""Children are killed, crash, compute and fill memory: calls to other servers stay quick, and nothing is left behind.

The callers of the other server pause between calls, so that they do not queue for the processor themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil

from tests.benchmarks.eras import Session, WrongAnswer
from tests.evidence.hosts import fresh_host, open_session, percentile
from tests.support.host_process import HostProcess
from tests.support.processes import PLAIN_SERVERS
from tests.support.upstreams import TALKING_CHILD

SERVERS = Path(__file__).with_name("servers")
KILLS = 100
CALLERS = 5
PAUSE_SECONDS = 0.02
MEMORY_MIB = 200
MAX_ERROR_SECONDS = 1.0
MAX_P99_SECONDS = 0.02
MAX_EXCESS = 1.1

HARMS = ("segfault", "exit", "hold the GIL", "leak")


def run(asgi_server: str) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        write_servers(Path(scratch))
        with fresh_host(asgi_server, server_dirs=f"{PLAIN_SERVERS}:{scratch}") as host:
            return asyncio.run(_measure(host, asgi_server))


def write_servers(directory: Path) -> None:
    """The servers that die: a command, an isolated folder, and two that fill memory."""
    talking = {"command": sys.executable, "args": ["-S", str(TALKING_CHILD)]}
    limit = {"gumcp": {"memoryMiB": MEMORY_MIB}}
    entries = {
        "talking": talking,
        "python-hog": {**talking, **limit},
        "node-hog": {"command": "node", "args": [str(SERVERS / "hog.mjs")], **limit},
        "hazard": {"gumcp": {"isolation": "process"}},
    }
    shutil.copytree(SERVERS / "hazard", directory / "hazard", ignore=shutil.ignore_patterns("__pycache__"))
    for name, entry in entries.items():
        (directory / name).mkdir(exist_ok=True)
        (directory / name / "server.json").write_text(json.dumps(entry))


class Bystanders:
    """Callers of a server in the host's own process."""

    def __init__(self, sessions: list[Session]) -> None:
        self._sessions = sessions

    async def during(self, harm: Callable[[], Awaitable[str]], what: str, max_p99: float = MAX_P99_SECONDS) -> bool:
        """Call for as long as `harm` takes, and print what became of it. Returns whether all were answered in time."""
        latencies: list[float] = []
        failures = 0
        is_over = False

        async def keep_calling(session: Session) -> None:
            nonlocal failures
            while not is_over:
                try:
                    text, seconds = await session.call("echo", {"text": "x"})
                except WrongAnswer:
                    failures += 1
                else:
                    failures += text != "x"
                    latencies.append(seconds)
                await asyncio.sleep(PAUSE_SECONDS)

        callers = asyncio.gather(*(keep_calling(session) for session in self._sessions))
        told = await harm()
        await asyncio.sleep(1)
        is_over = True
        await callers
        p99 = percentile(latencies, 99)
        print(
            f"  {what}: {told}; elsewhere {len(latencies)} calls, {failures} failed, p50 "
            f"{percentile(latencies, 50) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"
        )
        return failures == 0 and p99 < max_p99


async def _measure(host: HostProcess, asgi_server: str) -> bool:
    bystanders = Bystanders(
        [await open_session(host, "bystander", f"caller-{number}:key") for number in range(CALLERS)]
    )
    outcomes = [await bystanders.during(_idle, "nothing")]
    kills = Kills(host)
    outcomes += [await bystanders.during(kills.run, f"{KILLS} kills"), kills.holds]
    for harm in HARMS:
        outcomes.append(await bystanders.during(lambda harm=harm: _harm(host, harm), harm))
    for name in ("python-hog", "node-hog"):
        hog = Hog(host, name)
        # Watching it so closely takes the processor from the callers.
        outcomes += [await bystanders.during(hog.run, name, max_p99=1.0), hog.holds]
    return all(outcomes)


async def _idle() -> str:
    await asyncio.sleep(3)
    return "usually"


class Kills:
    """`kill -9` of a child in a call, again and again."""

    def __init__(self, host: HostProcess) -> None:
        self._host = psutil.Process(host.pid)
        self._start = host
        self.holds = False

    async def run(self) -> str:
        session = await open_session(self._start, "talking", "victim:key")
        await session.call("pid", {})
        descriptors = self._host.num_fds()
        errors: list[float] = []
        restarts: list[float] = []
        for _ in range(KILLS):
            pid = int((await session.call("pid", {}))[0])
            hanging = asyncio.create_task(session.call("hang", {"seconds": 60}))
            await asyncio.sleep(0.02)
            started = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(WrongAnswer):
                await hanging
                raise AssertionError("a call survived its process")
            errors.append(time.perf_counter() - started)
            started = time.perf_counter()
            assert (await session.call("echo", {"text": "again"}))[0] == "again"
            restarts.append(time.perf_counter() - started)
        session.close()
        await asyncio.sleep(1)
        zombies = sum(child.status() == psutil.STATUS_ZOMBIE for child in self._host.children(recursive=True))
        lost = self._host.num_fds() - descriptors
        self.holds = max(errors) < MAX_ERROR_SECONDS and zombies == 0 and lost <= 0
        return (
            f"error after {max(errors) * 1000:.0f} ms at most, next call {percentile(restarts, 50) * 1000:.0f} ms "
            f"(slowest {max(restarts) * 1000:.0f} ms), {zombies} zombies, {lost:+d} descriptors"
        )


async def _harm(host: HostProcess, how: str) -> str:
    key = f"{how.replace(' ', '-')}:key"
    session = await open_session(host, "hazard", key)
    try:
        await session.call("harm", {"how": how})
        ended = "answered"
    except WrongAnswer:
        ended = "error"
    session.close()
    # Another session: an idle connection may have been closed meanwhile.
    session = await open_session(host, "hazard", key)
    text, _ = await session.call("harm", {})
    session.close()
    return f"{ended}, next call answered by process {text}"


class Hog:
    """A child that fills memory, watched from outside."""

    def __init__(self, host: HostProcess, server: str) -> None:
        self._host = host
        self._server = server
        self.holds = False

    async def run(self) -> str:
        session = await open_session(self._host, self._server, "hog:key")
        fetched = ""
        if self._server == "node-hog":
            fetched, _ = await session.call("fetch", {"url": f"{self._host.base_url}/health_check"})
        growing = asyncio.create_task(session.call("grow", {}))
        peak = 0
        command = "node" if self._server == "node-hog" else "talking_child.py"
        tree = [
            process
            for process in psutil.Process(self._host.pid).children(recursive=True)
            if any(command in word for word in process.cmdline()) and "launcher.py" not in " ".join(process.cmdline())
        ]
        while not growing.done():
            with contextlib.suppress(psutil.Error):
                peak = max(peak, sum(found.rss - found.shared for found in (child.memory_info() for child in tree)))
            await asyncio.sleep(0.005)
        ended = isinstance(growing.exception(), WrongAnswer)
        reasons = [line for line in self._host.log().splitlines() if self._server in line and "MiB of memory" in line]
        session.close()
        self.holds = ended and bool(reasons) and peak < MEMORY_MIB * MAX_EXCESS * 2**20 and fetched in ("", "200")
        said = reasons[-1].partition("gumcp: ")[2] if reasons else "no reason"
        return f"{'fetch ' + fetched + ', ' if fetched else ''}peak {peak / 2**20:.0f} MiB of {MEMORY_MIB}, {said}"
