"""``python -m tests.faults.hostile``: attackers of every kind on one host, and ten well-behaved clients beside them.

The host checks keys. Each attacker has a key of its own or none, and an address of its own (127.0.0.0/8). The
well-behaved clients measure how long their calls take before the attack, for a quarter of the time, and during it. None
of their calls may be lost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tests.benchmarks.eras import ERAS
from tests.faults.figures import MIB, Watched, milliseconds, percentile
from tests.support.host_process import HostProcess, running_host
from tests.support.issued_keys import IssuedKey, issue
from tests.support.processes import migrate

CLIENTS: Final = 10
ANSWER_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 0.2
"""Between two calls of one client, so that it stays within its own limits."""

BODY_LIMIT: Final = 4 * MIB - 1024


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

    def __init__(self, host: HostProcess, keys: list[IssuedKey], end: float) -> None:
        self._host, self._keys, self._end = host, keys, end
        self._numbers = iter(range(sys.maxsize))
        self.counts: Counter[str] = Counter()

    async def keep(self, act: Callable[[str], Awaitable[None]]) -> None:
        name = act.__name__
        address = f"127.0.{1 + len(name) % 200}.{1 + sum(map(ord, name)) % 250}"
        while time.monotonic() < self._end:
            # The host may refuse and cut as it likes.
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                await act(address)
            self.counts[name.replace("_", " ")] += 1

    async def send(self, address: str, *parts: bytes, pause: float = 0.0, wait: float = ANSWER_SECONDS) -> bytes:
        """Send parts of a request from an address, and return the beginning of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._host.port, local_addr=(address, 0))
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
            f"POST /workshop/{target} HTTP/1.1\r\nHost: 127.0.0.1:{self._host.port}\r\n"
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
        host = f"127.0.0.1:{self._host.port}"
        head = f"POST /workshop/nobody:no HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
        await self.send(address, head.encode(), *([b"1\r\nx\r\n" * 5000] * 20), wait=3)

    async def invented_methods(self, address: str) -> None:
        for _ in range(20):
            line = f"M{random.randrange(10**9)} /admin/ HTTP/1.1\r\nHost: 127.0.0.1:{self._host.port}\r\n\r\n"
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
        session = ERAS["2025"](self._host.port, "workshop", self._keys[4].session_key)
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
        await self.send(
            address, f"GET /admin/login/ HTTP/1.1\r\nHost: 127.0.0.1:{self._host.port}\r\n\r\n".encode(), wait=5
        )
        await asyncio.sleep(0.1)

    async def calls_nobody_reads(self, address: str) -> None:
        call = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "fill", "arguments": {"characters": 4 * MIB}},
        }
        _, writer = await asyncio.open_connection("127.0.0.1", self._host.port, local_addr=(address, 0), limit=1024)
        writer.write(self.post(json.dumps(call).encode(), self._keys[7].session_key))
        await asyncio.sleep(2)
        writer.close()

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
            self.guessed_logins,
            self.calls_nobody_reads,
        ]


async def attack(host: HostProcess, seconds: float, data_dir: Path) -> bool:
    """Run all of it, print what came of it, and return whether no call of the well-behaved clients was lost."""
    good = [issue(data_dir, f"good-{number}") for number in range(CLIENTS)]
    bad = [issue(data_dir, f"bad-{number}") for number in range(8)]
    watched = Watched(host.pid)
    results = {}
    for what, length in (("before", seconds / 4), ("during", seconds)):
        end = time.monotonic() + length
        clients = [Client(host.port, key, list(ERAS)[number % len(ERAS)]) for number, key in enumerate(good)]
        attackers = Attackers(host, bad, end)
        acts = attackers.acts if what == "during" else []
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.call_until(end))
            for act in acts:
                group.create_task(attackers.keep(act))
        latencies = [value for client in clients for value in client.latencies]
        failures = [failure for client in clients for failure in client.failures]
        results[what] = percentile(latencies, 99)
        print(f"\n{what}: {milliseconds(latencies)}; lost {len(failures)}; {watched.mib:.0f} MiB")
        for failure, count in Counter(failures).most_common(5):
            print(f"  {count} x {failure[:150]}")
        for name, count in sorted(attackers.counts.items()):
            print(f"  {name}: {count}")
    series = sum(1 for line in host.metrics_text().splitlines() if not line.startswith("#"))
    await asyncio.sleep(5)
    print(f"\nafter: {watched.mib:.0f} MiB, {watched.descriptors} descriptors, {series} time series")
    print(f"p99 of the well-behaved: {results['during'] / max(results['before'], 1e-9):.1f} times its value before")
    return not failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hostile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="of attack; default: %(default)s")
    parser.add_argument("--server", choices=["daphne", "uvicorn", "both"], default="both", help="default: %(default)s")
    arguments = parser.parse_args()
    all_kept = True
    for server in ("daphne", "uvicorn") if arguments.server == "both" else (arguments.server,):
        print(f"\n== {server}")
        with tempfile.TemporaryDirectory(prefix="gumcp-hostile-") as folder:
            migrate(Path(folder))
            settings = {"GUMCP_AUTH": "keys", "GUMCP_LOG_LEVEL": "ERROR"}
            with running_host(Path(folder), None, asgi_server=server, **settings) as host:
                all_kept &= asyncio.run(attack(host, arguments.minutes * 60, Path(folder)))
    return 0 if all_kept else 1


if __name__ == "__main__":
    sys.exit(main())
