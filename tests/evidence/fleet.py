"""Several machines: what a relay costs, what Redis and PostgreSQL cost when they stop, and whether state stays whole.

    python -m tests.evidence.fleet keys       # latency of relays, Redis stopped and killed, revocation, a canary key
    python -m tests.evidence.fleet open       # pairs of every era on new connections, PostgreSQL stopped
    python -m tests.evidence.fleet cpu        # CPU time of a call: two workers beside two independent hosts
    python -m tests.evidence.fleet frozen     # a worker that is stopped (SIGSTOP)
    python -m tests.evidence.fleet link       # the link between two machines cut (root, in network namespaces)
    python -m tests.evidence.fleet clients    # conformance and the official clients through two nodes

Prints figures; exit status 1 if a claim does not hold. Runs by hand: it needs nginx, Redis and PostgreSQL.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil

from gateway.access.keys import public_part
from gateway.fleet.ring import Ring
from tests.fleet.topology import Topology, program, running_topology
from tests.support.host_process import fresh_host
from tests.support.processes import BUNDLED_SERVERS, ROOT, until
from tests.support.streamable import ACCEPT_BOTH, META, STATELESS, initialize_message

SERVER: Final = "simple-tools-server"
USERS: Final = 50
PAIR_SECONDS: Final = 60.0
RELAYED_CALLS: Final = 1500
CPU_ROUNDS: Final = 5
CPU_SECONDS: Final = 4.0

FIRST: Final = "10.77.0.1"
SECOND: Final = "10.77.0.2"

ISSUE: Final = """
import sys
from django.contrib.auth.models import User
from gateway.access.keys import make_key
from gateway.access.models import ApiKey
for number in range(50):
    new = make_key()
    user, _ = User.objects.get_or_create(username=f"user-{number}")
    ApiKey.objects.create(user=user, public=new.public, digest=new.digest)
    print(new.text)
"""

REVOKE: Final = """
from django.utils import timezone
from gateway.access.models import ApiKey
print(ApiKey.objects.filter(public="{public}").update(revoked_at=timezone.now()))
"""

COUNT: Final = """
from gateway.records.models import InstanceRecord
rows = InstanceRecord.objects.filter(user_id__startswith="pair")
print(rows.count(), rows.values("user_id").distinct().count())
"""


class Caller:
    """One connection that is kept."""

    def __init__(self, base_url: str, user: str) -> None:
        address, port = base_url.removeprefix("http://").split(":")
        self._connection = http.client.HTTPConnection(address, int(port), timeout=30)
        self._path = f"/{SERVER}/{user}"
        self._ids = itertools.count(1)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def post(self, message: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any, bytes]:
        self._connection.request("POST", self._path, json.dumps(message), {**ACCEPT_BOTH, **headers})
        response = self._connection.getresponse()
        return response.status, response.headers, response.read()

    def delete(self, session_id: str) -> None:
        self._connection.request("DELETE", self._path, headers={"Mcp-Session-Id": session_id})
        self._connection.getresponse().read()

    def stateless(self, tool: str, **arguments: str) -> tuple[int, bytes]:
        """Call a tool in the newest era: one request."""
        meta = {
            f"{META}protocolVersion": STATELESS,
            f"{META}clientInfo": {"name": "evidence", "version": "1"},
            f"{META}clientCapabilities": {},
        }
        message = {
            "jsonrpc": "2.0",
            "id": next(self._ids),
            "method": "tools/call",
            "params": {"name": tool, "arguments": arguments, "_meta": meta},
        }
        headers = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": "tools/call", "Mcp-Name": tool}
        status, _, body = self.post(message, headers)
        return status, body

    def in_session(self, tool: str, **arguments: str) -> tuple[int, bytes]:
        """Call a tool in a session of its own."""
        status, headers, body = self.post(initialize_message(), {})
        if status != 200:
            return status, body
        session = {"Mcp-Session-Id": headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-11-25"}
        self.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, session)
        call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        status, _, body = self.post(call, session)
        self.delete(session["Mcp-Session-Id"])
        return status, body


def call_over_sse(base_url: str, user: str, tool: str, **arguments: str) -> tuple[int, bytes]:
    """Call a tool over a stream of its own."""
    address, port = base_url.removeprefix("http://").split(":")
    with contextlib.closing(http.client.HTTPConnection(address, int(port), timeout=30)) as connection:
        connection.request("GET", f"/{SERVER}/{user}", headers={"Accept": "text/event-stream"})
        stream = connection.getresponse()
        if stream.status != 200:
            return stream.status, b""

        def event() -> bytes:
            while not (line := stream.readline()).startswith(b"data:"):
                if not line:
                    raise ConnectionError("the stream has ended")
            return line[5:].strip()

        endpoint = event().decode()
        for message in (
            initialize_message(),
            {"jsonrpc": "2.0", "method": "notifications/initialized"},
            {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": tool, "arguments": arguments}},
        ):
            with contextlib.closing(http.client.HTTPConnection(address, int(port), timeout=30)) as other:
                other.request("POST", endpoint, json.dumps(message), {"Content-Type": "application/json"})
                if (status := other.getresponse().status) != 202:
                    return status, b""
            if "id" in message:
                answer = event()
        return 200, answer


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def told(name: str, values: list[float]) -> None:
    milliseconds = [value * 1000 for value in values]
    print(f"  {name}: p50 {percentile(milliseconds, 0.5):.2f} ms, p99 {percentile(milliseconds, 0.99):.2f} ms")


# -- With keys -------------------------------------------------------------------------------------------------------


def measure_relays(topology: Topology, keys: list[str]) -> None:
    ring = Ring(sorted(node.name for node in topology.nodes))
    user = next(f"user-0:{key}" for key in keys[:1])
    owner = ring.owner(f"{SERVER}/{keys[0]}".encode())
    times: dict[str, list[float]] = {"to the owner's node": [], "to the other node": []}
    with contextlib.ExitStack() as stack:
        callers = {
            name: [stack.enter_context(Caller(node.base_url, user)) for _ in range(4)]
            for name, node in (
                ("to the owner's node", next(node for node in topology.nodes if node.name == owner)),
                ("to the other node", next(node for node in topology.nodes if node.name != owner)),
            )
        }
        for number in range(RELAYED_CALLS):
            for name, connections in callers.items():
                started = time.perf_counter()
                status, _ = connections[number % 4].stateless("retrieve-data", key="x")
                times[name].append(time.perf_counter() - started)
                assert status == 200
    for name, values in times.items():
        told(f"call {name}", values[100:])


@contextlib.contextmanager
def load(topology: Topology, keys: list[str]) -> Iterator[tuple[list[float], Counter[int]]]:
    """Calls of four users at once, through nginx, each on a connection of its own."""
    times: list[float] = []
    statuses: Counter[int] = Counter()
    is_over = threading.Event()

    def call(number: int) -> None:
        with Caller(topology.base_url, f"user-{number}:{keys[number]}") as caller:
            while not is_over.is_set():
                started = time.perf_counter()
                status, _ = caller.stateless("retrieve-data", key="x")
                times.append(time.perf_counter() - started)
                statuses[status] += 1
                time.sleep(0.005)

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call, number) for number in range(4)]
        try:
            yield times, statuses
        finally:
            is_over.set()
        for done in calls:
            done.result()


def stop_redis(topology: Topology, keys: list[str]) -> bool:
    assert topology.redis is not None
    holds = True
    with load(topology, keys) as (times, statuses):
        time.sleep(5)
        before = len(times)
        topology.redis.send_signal(signal.SIGSTOP)
        time.sleep(3)
        victim = f"user-9:{keys[9]}"
        with Caller(topology.base_url, victim) as caller:
            assert caller.stateless("retrieve-data", key="x")[0] == 200
            revoke = REVOKE.format(public=public_part(keys[9]))
            done = topology.manage("shell", "--no-imports", "-c", revoke)
            assert done.stdout.strip() == "1", (done.stdout, done.stderr)
            started = time.monotonic()
            while caller.stateless("retrieve-data", key="x")[0] != 401:
                time.sleep(0.02)
            print(f"  key refused {time.monotonic() - started:.2f} s after its revocation, Redis being stopped")
        time.sleep(4)
        topology.redis.send_signal(signal.SIGCONT)
        during = len(times)
        time.sleep(3)
        topology.redis.kill()
        time.sleep(4)
    told("calls before", times[:before])
    told("calls while Redis was stopped", times[before:during])
    told("calls after, Redis killed meanwhile", times[during:])
    print(f"  statuses: {dict(statuses)}")
    holds &= set(statuses) == {200}
    return holds


def look_for_canary(topology: Topology, key: str) -> bool:
    secret = key.encode()
    places: dict[str, bytes] = {}
    dump = subprocess.run(
        [str(program("pg_dump")), topology.database_url.replace("postgres://", "postgresql://")], capture_output=True
    )
    places["rows"] = dump.stdout
    assert len(dump.stdout) > 10_000, dump.stderr
    for path in topology.folder.rglob("*log*"):
        if path.is_file():
            places[f"log {path.relative_to(topology.folder)}"] = path.read_bytes()
    for node in topology.nodes:
        for process in [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]:
            places[f"environment of {process.pid}"] = Path(f"/proc/{process.pid}/environ").read_bytes()
    found = [place for place, content in places.items() if secret in content]
    size = sum(map(len, places.values())) >> 10
    print(f"  canary key looked for in {len(places)} places, {size} KiB: {found or 'nowhere'}")
    return not found


def look_in_redis(topology: Topology, key: str, work: Callable[[], object]) -> bool:
    """Whether the key travels to Redis, by MONITOR; prints how many commands the work caused."""
    client = [str(program("redis-cli")), "-p", str(topology.redis_port), "monitor"]
    with subprocess.Popen(client, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as monitor:
        time.sleep(0.5)
        work()
        time.sleep(0.5)
        monitor.terminate()
        assert monitor.stdout is not None
        seen = monitor.stdout.read()
    print(f"  Redis saw {len(seen.splitlines())} commands, {'WITH' if key.encode() in seen else 'without'} the key")
    return key.encode() not in seen


def with_keys(folder: Path) -> bool:
    limits = {"GUMCP_LIMIT_REQUESTS_PER_KEY": "100000/minute", "GUMCP_LIMIT_CALLS_PER_KEY": "100000/minute"}
    limits["GUMCP_LIMIT_REQUESTS_PER_ADDRESS"] = "1000000/minute"
    with running_topology(folder, GUMCP_AUTH="keys", **limits) as topology:
        keys = topology.manage("shell", "--no-imports", "-c", ISSUE).stdout.split()
        assert len(keys) == USERS
        holds = look_in_redis(topology, keys[0], lambda: measure_relays(topology, keys))
        holds &= stop_redis(topology, keys)
        return look_for_canary(topology, keys[0]) and holds


# -- Without keys ----------------------------------------------------------------------------------------------------


def count_pairs(topology: Topology) -> bool:
    misses, pairs, ends_at = Counter[str](), Counter[str](), time.monotonic() + PAIR_SECONDS
    bases = [node.base_url for node in topology.nodes] + [topology.base_url]

    def call(era: str, base: str, user: str, tool: str, **arguments: str) -> bytes:
        if era == "sse":
            return call_over_sse(base, user, tool, **arguments)[1]
        with Caller(base, user) as caller:
            if era == "2026-07-28":
                return caller.stateless(tool, **arguments)[1]
            return caller.in_session(tool, **arguments)[1]

    def work(thread: int) -> None:
        choose = random.Random(thread)
        for number in itertools.count():
            if time.monotonic() >= ends_at:
                return
            era = choose.choice(["sse", "2025-11-25", "2026-07-28"])
            user, value = f"pair-{choose.randrange(USERS)}:key", f"{thread}-{number}"
            user = user.replace(":key", f":key-{user}")
            call(era, choose.choice(bases), user, "store-data", key=f"k{thread}", value=value)
            era_again = choose.choice(["sse", "2025-11-25", "2026-07-28"])
            answer = call(era_again, choose.choice(bases), user, "retrieve-data", key=f"k{thread}")
            pairs[era] += 1
            if value.encode() not in answer:
                misses[f"{era} then {era_again}"] += 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, thread) for thread in range(8)]:
            done.result()
    time.sleep(2)
    rows = topology.manage("shell", "--no-imports", "-c", COUNT).stdout.split()
    print(f"  {pairs.total()} pairs in {PAIR_SECONDS:.0f} s {dict(pairs)}: {misses.total()} misses {dict(misses)}")
    print(f"  {rows[0]} instances of {rows[1]} users")
    return not misses and rows[0] == rows[1]


def stop_postgresql(topology: Topology) -> bool:
    assert topology.database is not None
    session: dict[str, str]
    with Caller(topology.base_url, "live:key") as caller:
        _, headers, _ = caller.post(initialize_message(), {})
        session = {"Mcp-Session-Id": headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-11-25"}
        processes = [psutil.Process(topology.database.pid), *psutil.Process(topology.database.pid).children()]
        for process in processes:
            process.suspend()
        times, statuses = [], Counter[int]()
        ends_at = time.monotonic() + 10
        while time.monotonic() < ends_at:
            started = time.perf_counter()
            ping = {"jsonrpc": "2.0", "id": 5, "method": "tools/list"}
            statuses[caller.post(ping, session)[0]] += 1
            times.append(time.perf_counter() - started)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
    told("calls of a live session while PostgreSQL was stopped for 10 s", times)
    print(f"  statuses: {dict(statuses)}")
    return set(statuses) == {200}


def without_keys(folder: Path) -> bool:
    with running_topology(folder) as topology:
        ready = until(lambda: all("Nodes beside this one: 127" in node.log() for node in topology.nodes), 10)
        holds = bool(ready) and count_pairs(topology)
        return stop_postgresql(topology) and holds


# -- Two workers -----------------------------------------------------------------------------------------------------


def compare_cpu(folder: Path) -> bool:
    """Alternate between two workers and two independent hosts, with the same callers."""
    options: dict[str, Any] = {"server_dirs": BUNDLED_SERVERS, "metrics": False}
    ratios: list[float] = []
    with (
        fresh_host(asgi_server="workers", **options) as fleet,
        fresh_host(asgi_server="serve", **options) as one,
        fresh_host(asgi_server="serve", **options) as other,
    ):
        until(lambda: "serves with 2 workers" in fleet.log(), 20)
        for number in range(CPU_ROUNDS):
            together = _cpu_of_call([fleet.base_url], [fleet.pid])
            apart = _cpu_of_call([one.base_url, other.base_url], [one.pid, other.pid])
            print(f"  round {number + 1}: workers {together * 1e6:.0f} µs a call, two hosts {apart * 1e6:.0f} µs")
            if number:  # the first one warms up
                ratios.append(together / apart)
    print(f"  ratios: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    return sum(ratios) / len(ratios) <= 1.10


def _cpu_of_call(base_urls: list[str], pids: list[int]) -> float:
    def seconds() -> float:
        found = [process for pid in pids for process in (psutil.Process(pid), *psutil.Process(pid).children(True))]
        times = [process.cpu_times() for process in found]
        return sum(it.user + it.system for it in times)

    ends_at = time.monotonic() + CPU_SECONDS

    def call(number: int) -> int:
        calls = 0
        with Caller(base_urls[number % len(base_urls)], f"cpu-{number}:key-{number}") as caller:
            while time.monotonic() < ends_at:
                assert caller.stateless("retrieve-data", key="x")[0] == 200
                calls += 1
        return calls

    before = seconds()
    with ThreadPoolExecutor(16) as pool:
        calls = sum(pool.map(call, range(16)))
    return (seconds() - before) / calls


def freeze_worker(folder: Path) -> bool:
    """Stop a worker, and wait until another one serves its callers."""
    with fresh_host(asgi_server="workers", server_dirs=BUNDLED_SERVERS) as host:
        until(lambda: "serves with 2 workers" in host.log(), 20)
        workers = [child for child in psutil.Process(host.pid).children() if "--worker" in child.cmdline()]
        victim, started = workers[0], time.monotonic()
        victim.suspend()
        # One that is stopped still accepts connections: its kernel does. Clients wait.
        until(lambda: not victim.is_running(), 40)
        ended = time.monotonic() - started
        statuses: Counter[int] = Counter()
        for number in range(40):
            with Caller(host.base_url, f"frozen-{number}:key") as caller:
                statuses[caller.stateless("retrieve-data", key="x")[0]] += 1
        print(f"  killed after {ended:.1f} s, all served after {time.monotonic() - started:.1f} s: {dict(statuses)}")
        return set(statuses) == {200} and time.monotonic() - started < 35


# -- Two network namespaces ------------------------------------------------------------------------------------------


def cut_link(folder: Path) -> bool:
    """Run the rest in a namespace of its own, with a second one for the second machine."""
    if "GUMCP_EVIDENCE_INSIDE" in os.environ:
        return _cut_link_inside(folder)
    here, there = f"gumcp-a{os.getpid()}", f"gumcp-b{os.getpid()}"
    run = partial(subprocess.run, check=True)
    try:
        for name in (here, there):
            run(["ip", "netns", "add", name])
            run(["ip", "-n", name, "link", "set", "lo", "up"])
        run(["ip", "link", "add", "va", "netns", here, "type", "veth", "peer", "name", "vb", "netns", there])
        for name, device, address in ((here, "va", FIRST), (there, "vb", SECOND)):
            run(["ip", "-n", name, "address", "add", f"{address}/24", "dev", device])
            run(["ip", "-n", name, "link", "set", device, "up"])
        inside = {**os.environ, "GUMCP_EVIDENCE_INSIDE": there}
        command = [sys.executable, "-m", "tests.evidence.fleet", "link"]
        return run(["ip", "netns", "exec", here, *command], env=inside, check=False).returncode == 0
    finally:
        for name in (here, there):
            subprocess.run(["ip", "netns", "del", name], check=False)


def _cut_link_inside(folder: Path) -> bool:
    there = os.environ.pop("GUMCP_EVIDENCE_INSIDE")
    wrappers = ((), ("ip", "netns", "exec", there))
    settings = {"GUMCP_ALLOW_NETWORK_WITHOUT_KEYS": "true"}
    with running_topology(folder, addresses=(FIRST, SECOND), services=FIRST, wrappers=wrappers, **settings) as topology:
        first, second = topology.nodes
        until(lambda: second.name in first.log().rpartition("Nodes beside this one")[2], 10)
        ring = Ring(sorted([first.name, second.name]))
        users = [f"cut-{number}" for number in range(400)]
        moved = [user for user in users if ring.owner(f"{SERVER}/{user}".encode()) == second.name][:40]
        answers: list[tuple[int, float]] = []

        def call(user: str, ends_at: float) -> None:
            with Caller(first.base_url, user) as caller:
                while time.monotonic() < ends_at:
                    started = time.monotonic()
                    status, _ = caller.stateless("retrieve-data", key="x")
                    answers.append((status, time.monotonic() - started))

        def call_all(seconds: float) -> None:
            answers.clear()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(call, moved[:8], [time.monotonic() + seconds] * 8))

        call_all(2)
        print(f"  before: {Counter(status for status, _ in answers)}")
        holds = {status for status, _ in answers} == {200}
        threading.Timer(1, subprocess.run, [["ip", "-n", there, "link", "set", "vb", "down"]]).start()
        call_all(12)
        longest, last = max(seconds for _, seconds in answers), answers[-1][0]
        print(f"  cut after 1 s: {Counter(status for status, _ in answers)}, longest {longest:.2f} s, last {last}")
        subprocess.run(["ip", "-n", there, "link", "set", "vb", "up"], check=True)
        return holds and longest < 2.5 and last == 200


def clients(folder: Path) -> bool:
    with running_topology(folder) as topology:
        base = topology.base_url.replace("127.0.0.1", "localhost")
        conformance = [sys.executable, "tests/conformance/run.py", "--url", f"{base}/everything/conformance"]
        matrix = [sys.executable, "tests/matrix/run.py", "--url", f"{base}/everything/ada:key"]
        statuses = [subprocess.run(command, cwd=ROOT).returncode for command in (conformance, matrix)]
        return statuses == [0, 0]


def main() -> int:
    parts = {
        "keys": with_keys,
        "open": without_keys,
        "cpu": compare_cpu,
        "frozen": freeze_worker,
        "link": cut_link,
        "clients": clients,
    }
    holds = True
    for name in sys.argv[1:] or parts:
        print(f"{name}:", flush=True)
        with tempfile.TemporaryDirectory(prefix="gumcp-evidence-", ignore_cleanup_errors=True) as folder:
            Path(folder).chmod(0o755)
            is_so = parts[name](Path(folder))
        print(f"  {'holds' if is_so else 'DOES NOT HOLD'}", flush=True)
        holds &= is_so
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
