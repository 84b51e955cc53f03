"""10 000 Streamable HTTP sessions, opened and never deleted: the limit holds, memory with it, and expiry frees them.

Beyond the limit every new session is opened, and the longest idle one ends for it.

    python -m tests.evidence.ten_thousand_sessions [--server daphne]

Four times over on one host. In the second round sessions lie in the gaps that those of the first have left, which takes
some more memory; from then on it must stay the same. Then 1 000 GETs and 1 000 POSTs that are refused, after which
nothing more is alive in the process than before.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import psutil

from tests.evidence.hosts import fresh_host
from tests.support.host_process import HostProcess
from tests.support.streamable import ACCEPT_BOTH, HandshakeSession, initialize_message

LIMIT = 10_000
BEYOND = 2_000
"""How many more are opened: for each the longest idle session makes room."""
IDLE_SECONDS = 60.0
KEYS = 20
CONNECTIONS = 8
ROUNDS = 4
REFUSED = 1_000

MAX_GROWTH_KIB = 10 * 1024
"""How much more memory the last round may take than the second: half a KiB for each session in between."""
MAX_BEYOND_KIB = 60 * 1024
"""How much memory may be taken while sessions are replaced: Python's collector lets garbage grow to a quarter of what
lives before it looks at everything."""
MAX_OBJECTS_LEFT = 500
"""How many more objects may be alive after all sessions, or all refused requests, than before."""


def run(asgi_server: str) -> bool:
    with fresh_host(
        asgi_server,
        GUMCP_MAX_SESSIONS=str(LIMIT),
        GUMCP_MAX_SESSIONS_PER_ADDRESS="0",
        GUMCP_SESSION_IDLE_SECONDS=str(IDLE_SECONDS),
        GUMCP_LOG_LEVEL="ERROR",
    ) as host:
        process = psutil.Process(host.pid)
        open_sessions(host, 100)  # the first ones load what a process needs once
        until_expired(host)
        base = census(host)
        rounds = [run_round(host, process, asgi_server, number) for number in range(ROUNDS)]
        growth = rounds[-1][0] - rounds[1][0]
        left = settled_census(host, base)
        print(
            f"{asgi_server}: memory at the limit, last round against the second: {growth:+.0f} KiB; "
            f"tasks, threads, objects before {base}, after {left}",
            flush=True,
        )
        is_quiet = refused_requests_leave_nothing(host, asgi_server)
        is_freed = left[0] <= base[0] and left[1] <= base[1] and left[2] <= base[2] + MAX_OBJECTS_LEFT
        return all(is_good for _, is_good in rounds) and growth <= MAX_GROWTH_KIB and is_freed and is_quiet


def run_round(host: HostProcess, process: psutil.Process, asgi_server: str, number: int) -> tuple[float, bool]:
    """Fill the host, try some more, wait for expiry. Returns the memory at the limit, and whether all went well."""
    empty = settled_kib(process)
    started = time.monotonic()
    opened = open_sessions(host, LIMIT)
    seconds = time.monotonic() - started
    full = settled_kib(process)
    held = host.metric("gumcp_sessions")
    beyond_limit = open_sessions(host, BEYOND)  # idle ones make room
    still_held = host.metric("gumcp_sessions")
    beyond = settled_kib(process) - full
    until_expired(host)
    freed = settled_kib(process)
    print(
        f"{asgi_server}, round {number}: {dict(opened)} in {seconds:.0f} s, {held:.0f} held, "
        f"{(full - empty) / LIMIT:.1f} KiB each; then {dict(beyond_limit)}, {still_held:.0f} held, {beyond:+.0f} KiB; "
        f"memory {empty / 1024:.0f} MiB, full {full / 1024:.0f}, expired {freed / 1024:.0f}",
        flush=True,
    )
    is_good = (
        opened == {200: LIMIT}
        and held == still_held == LIMIT
        and beyond_limit == {200: BEYOND}
        and beyond <= MAX_BEYOND_KIB
    )
    return full, is_good


def refused_requests_leave_nothing(host: HostProcess, asgi_server: str) -> bool:
    """Send GETs and POSTs that are refused, and look at what is alive before and after."""

    def ask(number: int) -> Counter[int]:
        connection = HTTPConnection("127.0.0.1", host.port, timeout=30)
        statuses: Counter[int] = Counter()
        unknown = {**ACCEPT_BOTH, "Mcp-Session-Id": "0" * 32}
        for turn in range(REFUSED // CONNECTIONS):
            path = f"/census/nobody-{number}-{turn}:key"
            for method, body, headers in (
                ("GET", None, unknown),
                ("POST", json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}), ACCEPT_BOTH),
            ):
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                response.read()
                statuses[response.status] += 1
        connection.close()
        return statuses

    before = census(host)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        statuses = sum(pool.map(ask, range(CONNECTIONS)), Counter())
    after = census(host)
    print(f"{asgi_server}: refused {dict(statuses)}; tasks, threads, objects before {before}, after {after}")
    instances = host.metric("gumcp_instances", server="census")
    return (
        statuses == {404: REFUSED, 400: REFUSED}
        and after[0] <= before[0]
        and after[1] <= before[1]
        and after[2] <= before[2] + MAX_OBJECTS_LEFT
        and instances <= KEYS + 1
    )


def open_sessions(host: HostProcess, count: int) -> Counter[int]:
    """Initialize `count` sessions and forget them. Returns how often each status came back."""
    body = json.dumps(initialize_message())

    def open_some(first: int) -> Counter[int]:
        connection = HTTPConnection("127.0.0.1", host.port, timeout=60)
        statuses: Counter[int] = Counter()
        for number in range(first, count, CONNECTIONS):
            connection.request("POST", f"/census/user-{number % KEYS}:key", body, ACCEPT_BOTH)
            response = connection.getresponse()
            response.read()
            statuses[response.status] += 1
        connection.close()
        return statuses

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return sum(pool.map(open_some, range(CONNECTIONS)), Counter())


def until_expired(host: HostProcess) -> None:
    end = time.monotonic() + IDLE_SECONDS + 30
    while host.metric("gumcp_sessions"):
        if time.monotonic() > end:
            raise AssertionError(f"{host.metric('gumcp_sessions'):.0f} idle sessions were not ended")
        time.sleep(0.5)


def census(host: HostProcess) -> tuple[int, int, int]:
    """How many tasks, threads and objects are alive in the host's process."""
    with HandshakeSession(host, "census", "counter:key") as session:
        tasks, threads, objects = map(int, session.call("count").split())
    return tasks, threads, objects


def settled_census(host: HostProcess, base: tuple[int, int, int]) -> tuple[int, int, int]:
    """The census once no more is alive than before, or after half a minute: rows may still be written."""
    end = time.monotonic() + 30
    while True:
        found = census(host)
        is_settled = found[0] <= base[0] and found[1] <= base[1] and found[2] <= base[2] + MAX_OBJECTS_LEFT
        if is_settled or time.monotonic() > end:
            return found
        time.sleep(1)


def uss_kib(process: psutil.Process) -> float:
    """Memory that the process shares with nobody."""
    return float(process.memory_full_info().uss) / 1024


def settled_kib(process: psutil.Process) -> float:
    """The same once it stands still: rows are written for a moment after the last session."""
    last = uss_kib(process)
    for _ in range(20):
        time.sleep(0.4)
        now = uss_kib(process)
        if abs(now - last) < 64:
            return now
        last = now
    return last


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.evidence.ten_thousand_sessions", description=__doc__)
    parser.add_argument("--server", choices=["daphne", "uvicorn"], help="one ASGI server only; default: both in turn")
    arguments = parser.parse_args()
    outcomes = [run(server) for server in ([arguments.server] if arguments.server else ["daphne", "uvicorn"])]
    print("holds" if all(outcomes) else "DOES NOT HOLD")
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
