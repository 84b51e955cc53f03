"""One key sends bodies of 4 MiB, dense ones and slow calls: others' calls stay quick, and the memory stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import time
from collections import Counter
from multiprocessing.queues import Queue
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.evidence.hosts import open_session, percentile
from tests.faults.figures import MIB, Watched
from tests.support.host_process import HostProcess, running_host
from tests.support.issued_keys import issue
from tests.support.processes import PLAIN_SERVERS, migrate

CALLERS = 5
MEASURED_SECONDS = 8
DENSE_AT_ONCE = 4
SLOW_CALLS_AT_ONCE = 100
BODY_BYTES = 4 * MIB - 1024
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "heavy", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
MAX_P99_SECONDS = 0.25
MAX_GROWTH_MIB = 400
"""The budget of one key (64 MiB) counts what is kept of a message. What is being read and decoded comes on top."""


def dense_body() -> bytes:
    """Nothing but empty lists: a list of 56 bytes for every 3 on the wire."""
    return b"[" + b"[]," * (BODY_BYTES // 3 - 2) + b"[]]"


def call_body() -> bytes:
    """A call of 4 MiB that takes a while."""
    arguments = {"seconds": 5, "filling": "x" * (BODY_BYTES - 1000)}
    params = {"name": "wait", "arguments": arguments, "_meta": META}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()


ATTACKS = {"dense bodies": (dense_body, DENSE_AT_ONCE), "slow calls of 4 MiB": (call_body, SLOW_CALLS_AT_ONCE)}


def run(asgi_server: str) -> bool:
    with TemporaryDirectory(prefix="gumcp-host-") as folder:
        migrate(Path(folder))
        options = {"GUMCP_AUTH": "keys", "GUMCP_LOG_LEVEL": "ERROR"}
        with running_host(Path(folder), None, asgi_server=asgi_server, server_dirs=PLAIN_SERVERS, **options) as host:
            outcomes = [asyncio.run(_measure(host, Path(folder), asgi_server, name)) for name in ATTACKS]
            return all(outcomes)


async def _measure(host: HostProcess, folder: Path, asgi_server: str, attack: str) -> bool:
    keys = [issue(folder, f"{attack.split()[0]}-{number}").session_key for number in range(CALLERS + 1)]
    callers = [await open_session(host, "bystander", key) for key in keys[1:]]
    await asyncio.gather(*(caller.call("echo", {"text": "warm"}) for caller in callers))
    watched = Watched(host.pid)
    before = await _call_for(callers, 2)
    started_with = watched.mib
    answers: Queue[Counter[str]] = multiprocessing.get_context("spawn").Queue()
    attacker = multiprocessing.get_context("spawn").Process(
        target=_attack, args=(attack, host.port, keys[0], MEASURED_SECONDS + 2, answers)
    )
    attacker.start()
    await asyncio.sleep(1.5)
    peak = asyncio.create_task(_peak(watched))
    meanwhile = await _call_for(callers, MEASURED_SECONDS - 1)
    peak.cancel()
    grown = await peak - started_with
    counts = await asyncio.to_thread(answers.get, True, 60)
    attacker.join()
    for caller in callers:
        caller.close()
    p99 = percentile(meanwhile, 99)
    print(
        f"{asgi_server}: beside {attack} of one key ({dict(counts)}), calls to another server: before, "
        f"p99 {percentile(before, 99) * 1000:.0f} ms; meanwhile {len(meanwhile)} calls, "
        f"p50 {percentile(meanwhile, 50) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms "
        f"(limit {MAX_P99_SECONDS * 1000:.0f}), slowest {max(meanwhile) * 1000:.0f} ms; "
        f"memory {grown:+.0f} MiB at most (limit {MAX_GROWTH_MIB})"
    )
    return p99 < MAX_P99_SECONDS and grown < MAX_GROWTH_MIB


async def _call_for(callers, seconds: float) -> list[float]:
    """Call now and then, as clients do: p99 must not depend on how quickly they call."""
    end = time.perf_counter() + seconds
    latencies: list[float] = []

    async def call(caller) -> None:
        while time.perf_counter() < end:
            text, taken = await caller.call("echo", {"text": "x"})
            assert text == "x"
            latencies.append(taken)
            await asyncio.sleep(0.02)

    await asyncio.gather(*map(call, callers))
    return latencies


async def _peak(watched: Watched) -> float:
    peak = watched.mib
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(0.1)
            peak = max(peak, watched.mib)
    return peak


def _attack(attack: str, port: int, key: str, seconds: float, answers: Queue[Counter[str]]) -> None:
    """Send one body after another on each of some connections. Runs in a process of its own."""
    make, at_once = ATTACKS[attack]
    answers.put(asyncio.run(_send_for(port, key, make(), at_once, seconds)))


async def _send_for(port: int, key: str, body: bytes, at_once: int, seconds: float) -> Counter[str]:
    counts: Counter[str] = Counter()
    request = (
        f"POST /workshop/{key} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: wait\r\n"
        "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body
    end = time.monotonic() + seconds

    async def send() -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(request)
                    async with asyncio.timeout(20):
                        answer = await reader.read(1024)
                    counts[answer[9:12].decode("latin-1") or "closed"] += 1
                except TimeoutError:
                    counts["no answer"] += 1
                finally:
                    writer.close()

    await asyncio.gather(*(send() for _ in range(at_once)))
    return counts
