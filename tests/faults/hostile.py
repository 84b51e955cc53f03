"""``python -m tests.faults.hostile``: attackers of every kind on one host, and ten well-behaved clients beside them.

The host checks keys. Each attacker has a key of its own or none, and addresses of its own (127.0.0.0/8). The attackers
run in a process of their own. The well-behaved clients measure how long their calls take before the attack, for a
minute at most, and during it. None of their calls may be lost.

Not here, because no traffic does it: files that others may read, what modules do to their process, and code in C that
keeps Python's lock. Open mode has tests of its own.

A summary is printed, and written to ``build/hostile.md`` after each server. The exit status is 1 if a call of a
well-behaved client was lost, or if the attackers ended early.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import queue
import random
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tests.benchmarks.eras import ERAS
from tests.faults.figures import MIB, Watched, milliseconds
from tests.support.host_process import HostProcess, running_host
from tests.support.issued_keys import IssuedKey, issue
from tests.support.processes import PLAIN_SERVERS, ROOT, migrate
from tests.support.smuggling import REFUSED

CLIENTS: Final = 10
ANSWER_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 0.2
"""Between two calls of one client, so that it stays within its own limits."""

BODY_LIMIT: Final = 4 * MIB - 1024

SERVERS: Final = f"{PLAIN_SERVERS}:{ROOT / 'tests' / 'servers' / 'calls'}"

KEYS: Final = 14
"""Of the attackers."""

META: Final = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "hostile", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}

ATTACKER_PAUSE_SECONDS: Final = 0.02
"""Between two acts of one attacker: the attack must not be limited by the ports of this machine."""

BEFORE_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 90.0
"""After the attack: rows are written, idle threads end, memory goes back to the system."""

SUMMARY: Final = ROOT / "build" / "hostile.md"


class Client:
    """One well-behaved client: opens a session, calls a few times, leaves, comes again."""

    def __init__(self, port: int, key: IssuedKey, era: str) -> None:
        self._port, self._key, self._era = port, key, era
        self.latencies: list[float] = []
        self.failures: list[str] = []
        self.calls = 0

    async def call_until(self, end: float) -> None:
        number = 0
        while time.monotonic() < end:
            session = ERAS[self._era](self._port, "workshop", self._key.session_key)
            try:
                await session.open()
                for _ in range(20):
                    number += 1
                    answer, seconds = await session.call("echo", {"text": str(number)})
                    self.calls += 1
                    if answer != str(number):
                        self.failures.append("a wrong answer")
                    self.latencies.append(seconds)
                    await asyncio.sleep(PAUSE_SECONDS)
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.5)
            finally:
                session.close()


class Attackers:
    """What strangers and holders of keys try."""

    def __init__(self, port: int, metrics_port: int, keys: list[IssuedKey], end: float) -> None:
        self._port, self._metrics_port, self._keys, self._end = port, metrics_port, keys, end
        self._numbers = iter(range(sys.maxsize))
        self.counts: Counter[str] = Counter()

    async def keep(self, number: int, act: Callable[[str], Awaitable[None]]) -> None:
        name = act.__name__.replace("_", " ")
        while time.monotonic() < self._end:
            address = f"127.1.{number}.{random.randrange(1, 9)}"
            try:
                await act(address)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                pass  # the host may refuse and cut as it likes
            except Exception as error:
                self.counts[f"  {name} failed: {type(error).__name__}"] += 1
            self.counts[name] += 1
            await asyncio.sleep(ATTACKER_PAUSE_SECONDS)

    async def send(
        self, address: str, *parts: bytes, pause: float = 0.0, wait: float = ANSWER_SECONDS, port: int = 0
    ) -> bytes:
        """Send parts of a request from an address, and return the beginning of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self._port, local_addr=(address, 0))
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                if pause:
                    await asyncio.sleep(pause)
            async with asyncio.timeout(wait):
                answer = await reader.read(4096)
            self.counts[f"  answered {answer[9:12].decode('latin-1') or 'nothing'}"] += 1
            return answer
        finally:
            writer.close()

    def post(self, body: bytes, key: str | None = None, headers: str = "") -> bytes:
        target = quote(key or f"stranger-{next(self._numbers)}:nothing", safe=":")
        head = (
            f"POST /workshop/{target} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Content-Type: application/json\r\n"
            f"Accept: application/json, text/event-stream\r\nContent-Length: {len(body)}\r\n{headers}"
            "Connection: close\r\n\r\n"
        )
        return head.encode() + body

    async def dense_initialize(self, address: str) -> None:
        capabilities = {"experimental": {"a": [{}] * (BODY_LIMIT // 4 - 100)}}
        params = {
            "protocolVersion": "2025-11-25",
            "clientInfo": {"name": "x", "version": "1"},
            "capabilities": capabilities,
        }
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        body = json.dumps(message, separators=(",", ":")).encode()
        await self.send(address, self.post(body, self._keys[0].session_key))

    async def dense_bodies(self, address: str) -> None:
        await self.send(address, self.post(b"[" + b"[]," * (BODY_LIMIT // 3 - 2) + b"[]]", self._keys[1].session_key))

    async def large_calls(self, address: str) -> None:
        call = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "wait", "arguments": {"seconds": 5}},
        }
        call["params"]["arguments"]["filling"] = "x" * (BODY_LIMIT - 1000)  # type: ignore[index]
        body = json.dumps(call).encode()
        await asyncio.gather(
            *(self.send(address, self.post(body, self._keys[2].session_key)) for _ in range(4)), return_exceptions=True
        )

    async def one_byte_chunks(self, address: str) -> None:
        host = f"127.0.0.1:{self._port}"
        head = f"POST /workshop/nobody:no HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
        await self.send(address, head.encode(), *([b"1\r\nx\r\n" * 5000] * 20), wait=3)

    async def invented_methods(self, address: str) -> None:
        for _ in range(20):
            line = f"M{random.randrange(10**9)} /admin/ HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n"
            await self.send(address, line.encode(), wait=3)

    async def wrong_keys(self, address: str) -> None:
        for _ in range(20):
            await self.send(address, self.post(b"{}", f"user:gumcp_{random.randbytes(12).hex()}"), wait=5)

    async def one_key_in_many_spellings(self, address: str) -> None:
        key = self._keys[3]
        spelled = "".join(f"%{ord(character):02X}" if random.random() < 0.5 else character for character in key.key)
        authorization = f"Authorization: Bearer {' ' * random.randrange(50)}{key.key}\r\n"
        await self.send(address, self.post(b"{}", f"{key.user}:{spelled}", authorization), wait=5)

    async def sessions_without_end(self, address: str) -> None:
        session = ERAS["2025"](self._port, "workshop", self._keys[4].session_key)
        with contextlib.suppress(Exception):
            await session.open()
        session.close()

    async def invented_versions(self, address: str) -> None:
        body = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {"protocolVersion": random.randbytes(20).hex()},
        }
        await self.send(address, self.post(json.dumps(body).encode(), self._keys[5].session_key), wait=5)

    async def slow_bodies(self, address: str) -> None:
        request = self.post(b"{" + b" " * 1000 + b"}")
        await self.send(address, request[:200], *(bytes([byte]) for byte in request[200:230]), pause=0.3, wait=2)

    async def unfinished_bodies(self, address: str) -> None:
        await self.send(address, self.post(b"x" * BODY_LIMIT)[: BODY_LIMIT // 2], wait=3)

    async def nonsense(self, address: str) -> None:
        await self.send(address, random.randbytes(500) + b"\r\n\r\n", wait=2)

    async def foreign_pages(self, address: str) -> None:
        headers = "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n"
        await self.send(address, self.post(b"{}", self._keys[6].session_key, headers), wait=5)

    async def guessed_logins(self, address: str) -> None:
        host = f"Host: 127.0.0.1:{self._port}\r\n"
        page = await self.send(address, f"GET /-/login/ HTTP/1.1\r\n{host}\r\n".encode(), wait=5)
        token = re.search(rb"csrftoken=(\w+)", page)
        cookie = token[1].decode() if token else "x" * 32
        form = f"csrfmiddlewaretoken={cookie}&username=admin&password={random.randrange(10**9)}"
        head = f"POST /-/login/ HTTP/1.1\r\n{host}Cookie: csrftoken={cookie}\r\nContent-Length: {len(form)}\r\n"
        kind = "Content-Type: application/x-www-form-urlencoded\r\nConnection: close\r\n\r\n"
        await self.send(address, (head + kind + form).encode(), wait=10)

    async def large_forms_for_pages(self, address: str) -> None:
        head = f"POST /admin/login/ HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nTransfer-Encoding: chunked\r\n\r\n"
        await self.send(address, head.encode(), *([b"10000\r\n" + b"x" * 65536 + b"\r\n"] * 100), wait=5)

    async def refused_initializes(self, address: str) -> None:
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"capabilities": 7}}
        await self.send(address, self.post(json.dumps(message).encode(), self._keys[5].session_key), wait=5)

    async def handlers_that_compute(self, address: str) -> None:
        await asyncio.gather(*(self._call_version_1("compute", {"seconds": 0.5}) for _ in range(16)))

    async def handlers_that_block(self, address: str) -> None:
        await asyncio.gather(*(self._call_version_1("block", {"seconds": 2}) for _ in range(16)))

    async def _call_version_1(self, tool: str, arguments: dict[str, Any]) -> None:
        session = ERAS["2026"](self._port, "version_1", self._keys[8].session_key)
        with contextlib.suppress(Exception):
            await session.open()
            await session.call(tool, arguments)
        session.close()

    async def wrong_keys_from_everywhere(self, address: str) -> None:
        for _ in range(20):
            everywhere = f"127.{random.randrange(8, 250)}.{random.randrange(250)}.{random.randrange(1, 250)}"
            await self.send(everywhere, self.post(b"{}", f"user:gumcp_{random.randbytes(12).hex()}"), wait=5)

    async def scrapers(self, address: str) -> None:
        lines = (f"GET /metrics HTTP/1.1\r\nHost: evil.example:{self._metrics_port}\r\n\r\n".encode(), b"GET /metr")
        for line in lines:
            with contextlib.suppress(TimeoutError):
                await self.send(address, line, wait=1, port=self._metrics_port)

    async def smuggled_requests(self, address: str) -> None:
        for request in random.sample(list(REFUSED.values()), 5):
            with contextlib.suppress(TimeoutError):
                await self.send(address, request, wait=2)

    async def odd_paths(self, address: str) -> None:
        key = self._keys[9]
        odd = ("%E2%80%A8", "%E2%80%AE", "%0A", "%00", "%FF", "..%2f..", "messages", "%5F", "a" * 9000)
        target = f"/workshop/{random.choice(odd)}{key.key.replace('_', '%5F')}/{random.choice(odd)}"
        head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nConnection: close\r\n\r\n"
        await self.send(address, head.encode(), wait=5)

    async def batches(self, address: str) -> None:
        pings = [{"jsonrpc": "2.0", "id": number, "method": "ping"} for number in range(20_000)]
        await self.send(address, self.post(json.dumps(pings).encode(), self._keys[9].session_key), wait=10)

    async def dripping_heads(self, address: str) -> None:
        heads = [b"GET /health_check HTTP/1.1\r\n", *([b"X: y\r\n"] * 20)]
        await asyncio.gather(
            *(self.send(address, *heads, pause=0.5, wait=2) for _ in range(50)), return_exceptions=True
        )

    async def streams_nobody_reads(self, address: str) -> None:
        head = f"GET /workshop/{self._keys[10].session_key} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
        await asyncio.gather(
            *(self.send(address, head.encode(), b"Accept: text/event-stream\r\n\r\n", wait=2) for _ in range(30)),
            return_exceptions=True,
        )
        await asyncio.sleep(1)

    async def clients_that_vanish(self, address: str) -> None:
        call = {"name": "wait", "arguments": {"seconds": 5}}
        session = ERAS["2025"](self._port, "workshop", self._keys[11].session_key)
        with contextlib.suppress(Exception):
            await session.open()
            async with asyncio.timeout(0.1):
                await session.call(call["name"], call["arguments"])
        session.close()

    async def relayed_headers(self, address: str) -> None:
        headers = "X-Gumcp-Client: 127.0.0.1 1\r\nX-Gumcp-Scheme: https\r\nDaphne-Root-Path: /x\r\n"
        await self.send(address, self.post(b"{}", headers=headers), wait=5)

    async def calls_nobody_reads(self, address: str) -> None:
        call = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "fill", "arguments": {"characters": 4 * MIB}},
        }
        _, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(address, 0), limit=1024)
        writer.write(self.post(json.dumps(call).encode(), self._keys[7].session_key))
        await asyncio.sleep(2)
        writer.close()

    async def large_answers_nobody_reads(self, address: str) -> None:
        params = {"name": "fill", "arguments": {"characters": 20 * MIB}, "_meta": META}
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        headers = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: fill\r\n"
        request = self.post(json.dumps(call).encode(), self._keys[12].session_key, headers)
        await asyncio.gather(*(self._send_and_never_read(address, request) for _ in range(8)), return_exceptions=True)

    async def pipelined_requests(self, address: str) -> None:
        line = f"GET /health_check HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n"
        await self._send_and_never_read(address, line.encode() * 2000)

    async def _send_and_never_read(self, address: str, request: bytes) -> None:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        with connection:
            connection.bind((address, 0))
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, ("127.0.0.1", self._port))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await loop.sock_sendall(connection, request)
                    await asyncio.sleep(3)

    async def messages_that_sessions_might_keep(self, address: str) -> None:
        session = ERAS["2025"](self._port, "workshop", self._keys[13].session_key)
        with contextlib.suppress(Exception):
            await session.open()
            head = f"Mcp-Session-Id: {session._session_headers['Mcp-Session-Id']}\r\n"
            message = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"message": "x" * 3 * MIB}}
            await self.send(address, self.post(json.dumps(message).encode(), self._keys[13].session_key, head))
        session.close()

    async def tiny_parts(self, address: str) -> None:
        host = f"127.0.0.1:{self._port}"
        head = (
            f"POST /workshop/{self._keys[13].session_key} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n"
            "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n\r\n"
        )
        await self.send(address, head.encode(), *([b"1\r\n \r\n"] * 200), pause=0.005, wait=2)

    async def pages_without_an_origin(self, address: str) -> None:
        head = (
            f"GET /workshop/{self._keys[6].session_key} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            "Accept: */*\r\nUser-Agent: Mozilla/5.0\r\nReferer: https://evil.example/\r\nConnection: close\r\n\r\n"
        )
        await self.send(address, head.encode(), wait=2)

    @property
    def acts(self) -> list[Callable[[str], Awaitable[None]]]:
        return [
            self.dense_initialize,
            self.dense_bodies,
            self.large_calls,
            self.one_byte_chunks,
            self.invented_methods,
            self.wrong_keys,
            self.one_key_in_many_spellings,
            self.sessions_without_end,
            self.invented_versions,
            self.slow_bodies,
            self.slow_bodies,
            self.unfinished_bodies,
            self.nonsense,
            self.foreign_pages,
            self.large_forms_for_pages,
            self.refused_initializes,
            self.handlers_that_compute,
            self.handlers_that_block,
            self.wrong_keys_from_everywhere,
            self.scrapers,
            self.smuggled_requests,
            self.odd_paths,
            self.batches,
            self.dripping_heads,
            self.streams_nobody_reads,
            self.clients_that_vanish,
            self.relayed_headers,
            self.guessed_logins,
            self.calls_nobody_reads,
            self.large_answers_nobody_reads,
            self.pipelined_requests,
            self.messages_that_sessions_might_keep,
            self.tiny_parts,
            self.pages_without_an_origin,
        ]


async def _attack(attackers: Attackers, only: str) -> None:
    async with asyncio.TaskGroup() as group:
        for number, act in enumerate(attackers.acts, 1):
            if only in ("", act.__name__):
                group.create_task(attackers.keep(number, act))


def attack(port: int, metrics_port: int, keys: list[IssuedKey], seconds: float, counts: Any, only: str = "") -> None:
    """Attack for so long, in one way if `only` names it. Runs in a process of its own."""
    attackers = Attackers(port, metrics_port, keys, time.monotonic() + seconds)
    asyncio.run(_attack(attackers, only))
    counts.put(attackers.counts)


@dataclass
class State:
    """What the host holds at one moment."""

    mib: float
    descriptors: int
    threads: int
    series: int


def look(host: HostProcess, watched: Watched) -> State:
    series = sum(1 for line in host.metrics_text().splitlines() if line and not line.startswith("#"))
    return State(watched.mib, watched.descriptors, watched.threads, series)


async def call_for(host: HostProcess, keys: list[IssuedKey], seconds: float) -> list[Client]:
    """Have the well-behaved clients call for so long."""
    clients = [Client(host.port, key, list(ERAS)[number % len(ERAS)]) for number, key in enumerate(keys)]
    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.call_until(end))
    return clients


@dataclass
class Peak:
    """The most that the host held at any moment that was looked at."""

    mib: float = 0.0
    descriptors: int = 0
    threads: int = 0

    async def watch(self, watched: Watched) -> None:
        while True:
            self.mib = max(self.mib, watched.mib)
            self.descriptors = max(self.descriptors, watched.descriptors)
            self.threads = max(self.threads, watched.threads)
            await asyncio.sleep(1)


COUNTED: Final = {
    "gumcp_refused_requests_total": "refused requests",
    "gumcp_connection_faults_total": "refused or cut connections",
    "gumcp_withheld_messages_total": "withheld answers",
    "gumcp_slow_readers_total": "streams that nobody read",
    "gumcp_request_failures_total": "errors of the host",
}
"""Counters that say what became of the attacks."""


def counters(host: HostProcess) -> dict[str, Counter[str]]:
    """What the host has counted: metric -> label -> count."""
    found: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    for line in host.metrics_text().splitlines():
        sample = re.fullmatch(r'(\w+)\{(?:reason|server|when)="([^"]*)"\} (\S+)', line)
        if sample and sample[1] in found:
            found[sample[1]][sample[2]] += int(float(sample[3]))
    return found


def errors(host: HostProcess) -> Counter[str]:
    """The errors in the host's log, without what differs from one to the next."""
    lines = re.findall(r"\bERROR:? +(.*)", host.log())
    return Counter(re.sub(r"\d+", "N", line)[:150] for line in lines)


async def run(host: HostProcess, server: str, seconds: float, data_dir: Path) -> tuple[list[str], bool]:
    """Run all of it. Returns the lines of a summary, and whether no call of the well-behaved clients was lost."""
    good = [issue(data_dir, f"good-{number}") for number in range(CLIENTS)]
    bad = [issue(data_dir, f"bad-{number}") for number in range(KEYS)]
    watched = Watched(host.pid)
    before = await call_for(host, good, min(BEFORE_SECONDS, seconds / 4))
    first = look(host, watched)
    spawn = multiprocessing.get_context("spawn")
    counts: Any = spawn.Queue()
    attacker = spawn.Process(target=attack, args=(host.port, host.metrics_port, bad, seconds, counts))
    attacker.start()
    peak = Peak(first.mib, first.descriptors, first.threads)
    watching = asyncio.create_task(peak.watch(watched))
    during = await call_for(host, good, seconds)
    watching.cancel()
    acts: Counter[str] = Counter()
    with contextlib.suppress(queue.Empty):
        acts = await asyncio.to_thread(counts.get, True, 60)
    attacker.join(30)
    if attacker.is_alive():
        attacker.kill()
    await asyncio.sleep(min(SETTLE_SECONDS, seconds))
    last = look(host, watched)
    usual = [value for client in before for value in client.latencies]
    latencies = [value for client in during for value in client.latencies]
    failures = Counter(failure[:150] for client in (*before, *during) for failure in client.failures)
    lost = failures.total()
    attacks = {name: count for name, count in acts.items() if not name.startswith(" ")}
    answers = {name.split()[1]: count for name, count in sorted(acts.items()) if name.startswith("  answered")}
    broken = {name.strip(): count for name, count in acts.items() if " failed: " in name}
    lines = [
        f"{server}, {seconds / 60:g} minutes: {len(attacks)} kinds of attackers, {sum(attacks.values())} attacks, "
        f"beside {CLIENTS} well-behaved clients",
        f"  calls of the clients: {len(latencies)}, lost {lost}",
        f"  before the attack: {milliseconds(usual)}, slowest {max(usual, default=0) * 1000:.0f} ms",
        f"  during the attack: {milliseconds(latencies)}, slowest {max(latencies, default=0) * 1000:.0f} ms",
        f"  memory: {first.mib:.0f} MiB before, {peak.mib:.0f} at the peak, {last.mib:.0f} at the end",
        f"  descriptors: {first.descriptors} before, {peak.descriptors} at the peak, {last.descriptors} at the end",
        f"  threads: {first.threads} before, {peak.threads} at the peak, {last.threads} at the end",
        f"  time series: {first.series} before, {last.series} at the end",
        f"  attackers were answered: {_listed(answers)}",
        *(f"  {COUNTED[name]}: {_listed(found)}" for name, found in counters(host).items() if found.total()),
        *(f"  {count} x in the host's log: {line}" for line, count in errors(host).most_common(10)),
        *(f"  {count} x lost: {failure}" for failure, count in failures.most_common(10)),
    ]
    if broken:
        lines.append(f"  errors of the attackers themselves: {_listed(broken)}")
    if not acts:
        lines.append("  THE ATTACKERS ENDED EARLY")
    return lines, bool(latencies) and bool(acts) and not lost


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "none"


async def run_each(host: HostProcess, seconds: float, data_dir: Path, acts: list[str]) -> None:
    """Run one attack after the other, all of them unless `acts` names some. Print what each does to the clients."""
    good = [issue(data_dir, f"good-{number}") for number in range(CLIENTS)]
    bad = [issue(data_dir, f"bad-{number}") for number in range(KEYS)]
    watched = Watched(host.pid)
    spawn = multiprocessing.get_context("spawn")
    for name in ["nobody", *(acts or dict.fromkeys(act.__name__ for act in Attackers(0, 0, [], 0).acts))]:
        counts: Any = spawn.Queue()
        attacker = spawn.Process(target=attack, args=(host.port, host.metrics_port, bad, seconds, counts, name))
        attacker.start()
        cpu_seconds = watched.cpu_seconds
        clients = await call_for(host, good, seconds)
        cpu_seconds = watched.cpu_seconds - cpu_seconds
        await asyncio.to_thread(counts.get, True, 60)
        attacker.join(30)
        lost = sum(len(client.failures) for client in clients)
        times = milliseconds([value for client in clients for value in client.latencies])
        print(f"{name:28} {times}; lost {lost}; CPU {cpu_seconds / seconds:.0%}; {watched.mib:.0f} MiB", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hostile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="of attack on each server; default: %(default)s")
    parser.add_argument("--server", choices=["daphne", "uvicorn", "both"], default="both", help="default: %(default)s")
    parser.add_argument("--each", type=float, metavar="SECONDS", help="run one attack after the other, each so long")
    parser.add_argument("--acts", nargs="*", default=[], metavar="NAME", help="with --each: only these")
    arguments = parser.parse_args()
    lines: list[str] = []
    all_kept = True
    for server in ("daphne", "uvicorn") if arguments.server == "both" else (arguments.server,):
        print(f"== {server}", flush=True)
        with tempfile.TemporaryDirectory(prefix="gumcp-hostile-") as folder:
            migrate(Path(folder))
            settings = {"GUMCP_AUTH": "keys", "GUMCP_LOG_LEVEL": "ERROR"}
            with running_host(Path(folder), None, asgi_server=server, server_dirs=SERVERS, **settings) as host:
                if arguments.each:
                    asyncio.run(run_each(host, arguments.each, Path(folder), arguments.acts))
                    continue
                found, is_kept = asyncio.run(run(host, server, arguments.minutes * 60, Path(folder)))
        all_kept &= is_kept
        lines += [*found, "  kept every call" if is_kept else "  LOST CALLS", ""]
        SUMMARY.parent.mkdir(exist_ok=True)
        SUMMARY.write_text("```\n" + "\n".join(lines) + "```\n")
    if not lines:
        return 0
    print("\n" + "\n".join(lines) + f"written to {SUMMARY.relative_to(ROOT)}")
    return 0 if all_kept else 1


if __name__ == "__main__":
    sys.exit(main())
