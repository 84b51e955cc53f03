"""10 000 wrong keys from one address: answered 401, then 429; other users' p99 stays under twice its value before.

The other users come from the same address, which is the harder case. Whoever guesses sits in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

from gateway.access.keys import make_key
from tests.benchmarks.eras import Session
from tests.evidence.hosts import open_session, percentile
from tests.support.host_process import HostProcess, running_host
from tests.support.issued_keys import issue
from tests.support.processes import ROOT, migrate

WRONG_KEYS: Final = 10_000
CONNECTIONS: Final = 4
USERS: Final = 10
PAUSE_SECONDS: Final = 0.02
CALM_SECONDS: Final = 8.0


def run(asgi_server: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="gumcp-evidence-") as folder:
        data_dir = Path(folder)
        migrate(data_dir)
        keys = [issue(data_dir, f"user-{number}").session_key for number in range(USERS)]
        limits = {"GUMCP_LIMIT_CALLS_PER_KEY": "", "GUMCP_LIMIT_REQUESTS_PER_KEY": "100000/minute"}
        limits["GUMCP_LIMIT_REQUESTS_PER_ADDRESS"] = "1000000/minute"
        with running_host(data_dir, None, asgi_server=asgi_server, GUMCP_AUTH="keys", **limits) as host:
            before, during, statuses, seconds = asyncio.run(_measure(host, keys))
            newcomer = issue(data_dir, "newcomer")
            late = host.request("GET", f"/workshop/{newcomer.session_key}").status
    p99_before, p99_during = percentile(before, 99) * 1000, percentile(during, 99) * 1000
    print(
        f"{asgi_server}: {sum(statuses.values())} wrong keys in {seconds:.1f} s: {dict(statuses)}; "
        f"{USERS} users' calls: {len(before)} before, p99 {p99_before:.1f} ms; "
        f"{len(during)} meanwhile, p99 {p99_during:.1f} ms ({p99_during / p99_before:.2f} times); "
        f"a key never seen before, from that address afterwards: {late}"
    )
    return (
        set(statuses) == {401, 429}
        and sum(statuses.values()) == WRONG_KEYS
        and statuses[401] == 30
        and p99_during < 2 * p99_before
    )


async def _measure(host: HostProcess, keys: list[str]) -> tuple[list[float], list[float], Counter[int], float]:
    sessions = [await open_session(host, "workshop", key) for key in keys]
    await _call_for(sessions, 2.0)  # warm-up
    before = await _call_for(sessions, CALM_SECONDS)
    guesser = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.evidence.wrong_keys", str(host.port), stdout=subprocess.PIPE, cwd=ROOT
    )
    started = time.monotonic()
    output = asyncio.create_task(guesser.communicate())
    during: list[float] = []
    while not output.done():
        during += await _call_for(sessions, 0.25)
    seconds = time.monotonic() - started
    for session in sessions:
        session.close()
    counted = json.loads((await output)[0])
    return before, during, Counter({int(status): count for status, count in counted.items()}), seconds


async def _call_for(sessions: list[Session], seconds: float) -> list[float]:
    end = time.monotonic() + seconds
    times: list[float] = []

    async def call(session: Session) -> None:
        while time.monotonic() < end:
            started = time.perf_counter()
            await session.call("echo", {"text": "x"})
            times.append(time.perf_counter() - started)
            await asyncio.sleep(PAUSE_SECONDS)

    await asyncio.gather(*(call(session) for session in sessions))
    return times


def _guess(port: int) -> None:
    """Try wrong keys over a few connections, as quickly as they are answered; prints the statuses."""
    statuses: Counter[int] = Counter()

    async def guess(count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, family=socket.AF_INET)
        for _ in range(count):
            head = f"POST /workshop/user-0:{make_key().text} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
            writer.write(head.encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            statuses[int(answer.split(b" ", 2)[1])] += 1
            length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
        writer.close()

    async def guess_all() -> None:
        await asyncio.gather(*(guess(WRONG_KEYS // CONNECTIONS) for _ in range(CONNECTIONS)))

    asyncio.run(guess_all())
    print(json.dumps(statuses))


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].isdecimal():
        _guess(int(sys.argv[1]))
    else:
        # Not short-circuited: both servers are shown.
        sys.exit(0 if all([run("daphne"), run("uvicorn")]) else 1)
