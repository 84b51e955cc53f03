"""Several workers and machines: what it costs that a request reaches the wrong one, what Redis and PostgreSQL cost when
they stop, and whether state stays whole.

    python -m tests.evidence.fleet relays     # latency of a call that another machine relays, and what Redis sees
    python -m tests.evidence.fleet given      # latency of a call whose connection is given to another worker
    python -m tests.evidence.fleet cpu        # CPU time of a call: two workers beside two independent hosts
    python -m tests.evidence.fleet redis      # Redis stopped and killed, revocation meanwhile, a canary key
    python -m tests.evidence.fleet postgresql # PostgreSQL stopped
    python -m tests.evidence.fleet pairs      # 10 000 pairs of every era on new connections, four workers
    python -m tests.evidence.fleet least_conn # pairs through nginx that knows nothing of owners
    python -m tests.evidence.fleet frozen     # a worker that is stopped (SIGSTOP)
    python -m tests.evidence.fleet deadly     # a server that ends its process when it is imported
    python -m tests.evidence.fleet link       # the link between two machines cut (root, in network namespaces)
    python -m tests.evidence.fleet clients    # conformance and the official clients, two workers and two machines

Prints figures; exit status 1 if a claim does not hold. Runs by hand: it needs nginx, Redis and PostgreSQL.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import shutil
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
from tests.support.host_process import fresh_host, workers_of
from tests.support.processes import BUNDLED_SERVERS, ROOT, until
from tests.support.streamable import ACCEPT_BOTH, META, STATELESS, initialize_message

SERVER: Final = "simple-tools-server"
USERS: Final = 50
PAIRS: Final = 10_000
BALANCED_PAIRS: Final = 400
CONFORMANCE_RUNS: Final = 5
RELAYED_CALLS: Final = 1500
GIVEN_CALLS: Final = 1500
CPU_ROUNDS: Final = 13
"""Many short ones: what else runs on the machine then weighs on both alike. The first one warms up."""
CPU_SECONDS: Final = 1.0
DEADLY_SECONDS: Final = 120.0

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

ERAS: Final = ("sse", "2025-11-25", "2026-07-28")

INSTANCES: Final = (
    "SELECT count(*) AS instances, count(DISTINCT user_id) AS users FROM records_instancerecord"
    " WHERE user_id LIKE 'pair%'"
)


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

    def post(self, message: dict[str, Any], headers: dict[str, str], path: str = "") -> tuple[int, Any, bytes]:
        self._connection.request("POST", path or self._path, json.dumps(message), {**ACCEPT_BOTH, **headers})
        response = self._connection.getresponse()
        return response.status, response.headers, response.read()

    def delete(self, session_id: str) -> None:
        self._connection.request("DELETE", self._path, headers={"Mcp-Session-Id": session_id})
        self._connection.getresponse().read()

    def stateless(self, tool: str, user: str = "", **arguments: str) -> tuple[int, bytes]:
        """Call a tool in the newest era: one request. `user`: another one, on the same connection."""
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
        status, _, body = self.post(message, headers, f"/{SERVER}/{user}" if user else "")
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


@contextlib.contextmanager
def topology_with_keys(folder: Path) -> Iterator[tuple[Topology, list[str]]]:
    limits = {"GUMCP_LIMIT_REQUESTS_PER_KEY": "100000/minute", "GUMCP_LIMIT_CALLS_PER_KEY": "100000/minute"}
    limits["GUMCP_LIMIT_REQUESTS_PER_ADDRESS"] = "1000000/minute"
    with running_topology(folder, GUMCP_AUTH="keys", **limits) as topology:
        keys = topology.manage("shell", "--no-imports", "-c", ISSUE).stdout.split()
        assert len(keys) == USERS
        wait_for_nodes(topology)
        yield topology, keys


def wait_for_nodes(topology: Topology) -> None:
    until(lambda: all("Nodes beside this one: 127" in node.log() for node in topology.nodes), 10)


def relays(folder: Path) -> bool:
    with topology_with_keys(folder) as (topology, keys):
        return look_in_redis(topology, keys[0], lambda: measure_relays(topology, keys))


def redis(folder: Path) -> bool:
    with topology_with_keys(folder) as (topology, keys):
        holds = stop_redis(topology, keys)
        return look_for_canary(topology, keys[0]) and holds


# -- Without keys ----------------------------------------------------------------------------------------------------


def count_pairs(bases: list[str], count: int) -> bool:
    """Store something, and ask for it on another connection, in any era and at any address."""
    misses, pairs, numbers = Counter[str](), Counter[str](), iter(range(count))
    started = time.monotonic()

    def call(era: str, base: str, user: str, tool: str, **arguments: str) -> bytes:
        if era == "sse":
            return call_over_sse(base, user, tool, **arguments)[1]
        with Caller(base, user) as caller:
            if era == "2026-07-28":
                return caller.stateless(tool, **arguments)[1]
            return caller.in_session(tool, **arguments)[1]

    def work(thread: int) -> None:
        choose = random.Random(thread)
        for number in numbers:
            era, era_again = choose.choice(ERAS), choose.choice(ERAS)
            user, value = f"pair-{choose.randrange(USERS)}", f"{thread}-{number}"
            user = f"{user}:key-{user}"
            call(era, choose.choice(bases), user, "store-data", key=f"k{thread}", value=value)
            answer = call(era_again, choose.choice(bases), user, "retrieve-data", key=f"k{thread}")
            pairs[era] += 1
            if value.encode() not in answer:
                misses[f"{era} then {era_again}"] += 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, thread) for thread in range(8)]:
            done.result()
    seconds = time.monotonic() - started
    print(f"  {pairs.total()} pairs in {seconds:.0f} s {dict(pairs)}: {misses.total()} misses {dict(misses)}")
    return not misses and pairs.total() == count


def pairs(folder: Path) -> bool:
    with fresh_host(asgi_server="serve", server_dirs=BUNDLED_SERVERS, GUMCP_WORKERS="4") as host:
        until(lambda: "serves with 4 workers" in host.log(), 20)
        holds = count_pairs([host.base_url], PAIRS)
        until(lambda: host.rows(f"{INSTANCES} HAVING count(*) = {USERS}"), 10)
        (row,) = host.rows(INSTANCES)
        print(f"  {len(workers_of(host))} workers, {row['instances']} instances of {row['users']} users")
        return holds and row["instances"] == row["users"] == USERS


def least_conn(folder: Path) -> bool:
    with running_topology(folder, balancing="least_conn") as topology:
        wait_for_nodes(topology)
        holds = count_pairs([topology.base_url], BALANCED_PAIRS)
        relayed = sum(node.metric("gumcp_relayed_requests_total", to="node") for node in topology.nodes)
        print(f"  {relayed:.0f} requests were relayed between the machines")
        return holds and relayed > 0


def postgresql(folder: Path) -> bool:
    with running_topology(folder) as topology:
        wait_for_nodes(topology)
        return stop_postgresql(topology)


def stop_postgresql(topology: Topology) -> bool:
    """Stop it for ten seconds. Go on with a session, and ask for another one that no process has in memory."""
    assert topology.database is not None
    ping = {"jsonrpc": "2.0", "id": 5, "method": "tools/list"}
    others: list[tuple[int, float]] = []
    times: list[float] = []
    statuses: Counter[int] = Counter()

    def open_session(caller: Caller) -> dict[str, str]:
        _, headers, _ = caller.post(initialize_message(), {})
        session = {"Mcp-Session-Id": headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-11-25"}
        caller.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, session)
        return session

    def ask(ends_at: float) -> None:
        with Caller(topology.base_url, "other:other-key") as caller:
            while time.monotonic() < ends_at:
                started = time.perf_counter()
                others.append((caller.post(ping, other)[0], time.perf_counter() - started))
                time.sleep(0.2)

    with Caller(topology.base_url, "live:live-key") as caller, Caller(topology.base_url, "other:other-key") as another:
        live, other = open_session(caller), open_session(another)
        time.sleep(1)
        for node in topology.nodes:
            os.kill(node.pid, signal.SIGHUP)
        until(lambda: all("The reload is done" in node.log() for node in topology.nodes), 120)
        assert caller.post(ping, live)[0] == 200
        processes = [psutil.Process(topology.database.pid), *psutil.Process(topology.database.pid).children()]
        for process in processes:
            process.suspend()
        try:
            ends_at = time.monotonic() + 10
            asking = threading.Thread(target=ask, args=[ends_at])
            asking.start()
            while time.monotonic() < ends_at:
                started = time.perf_counter()
                statuses[caller.post(ping, live)[0]] += 1
                times.append(time.perf_counter() - started)
            asking.join()
        finally:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
        after: list[int] = []
        until(lambda: after.append(another.post(ping, other)[0]) or after[-1] == 200, 15)
    told("calls of a live session while PostgreSQL was stopped for 10 s", times)
    print(f"  statuses: {dict(statuses)}")
    answers = Counter(status for status, _ in others)
    slowest = max(seconds for _, seconds in others)
    print(f"  a session that is in no memory: {dict(answers)} ({slowest:.2f} s at most), then {after[-1]}")
    return set(statuses) == {200} and set(answers) == {503} and after[-1] == 200


# -- Two workers -----------------------------------------------------------------------------------------------------


def compare_cpu(folder: Path) -> bool:
    """Alternate between two workers and two independent hosts, with the same callers."""
    options: dict[str, Any] = {"server_dirs": BUNDLED_SERVERS, "metrics": False}
    costs: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with (
        fresh_host(asgi_server="workers", **options) as fleet,
        fresh_host(asgi_server="serve", **options) as one,
        fresh_host(asgi_server="serve", **options) as other,
    ):
        until(lambda: "serves with 2 workers" in fleet.log(), 20)
        for number in range(CPU_ROUNDS):
            for is_mixed, found in costs.items():
                together = _cpu_of_call([fleet.base_url], [fleet.pid], is_mixed=is_mixed)
                apart = _cpu_of_call([one.base_url, other.base_url], [one.pid, other.pid], is_mixed=is_mixed)
                if number:
                    found.append((together, apart))
    ratios = {}
    for is_mixed, found in costs.items():
        together, apart = (sum(column) / len(found) for column in zip(*found, strict=True))
        ratios[is_mixed] = together / apart
        connections = "connections that callers share" if is_mixed else "a connection for each caller"
        print(f"  {connections}: workers {together * 1e6:.0f} µs a call, two hosts {apart * 1e6:.0f} µs")
        print(f"  {ratios[is_mixed]:.2f} times as much; rounds {', '.join(f'{one / two:.2f}' for one, two in found)}")
    return ratios[False] <= 1.10


def _cpu_of_call(base_urls: list[str], pids: list[int], *, is_mixed: bool) -> float:
    """Seconds of CPU time. `is_mixed`: on each connection callers take turns, as behind a balancer."""

    def seconds() -> float:
        found = [process for pid in pids for process in (psutil.Process(pid), *psutil.Process(pid).children(True))]
        times = [process.cpu_times() for process in found]
        return sum(it.user + it.system for it in times)

    ends_at = time.monotonic() + CPU_SECONDS

    def call(number: int) -> int:
        users = [f"cpu-{(number + turn) % 16}:key-{(number + turn) % 16}" for turn in range(16 if is_mixed else 1)]
        with Caller(base_urls[number % len(base_urls)], users[0]) as caller:
            for calls in itertools.count():
                if time.monotonic() >= ends_at:
                    return calls
                assert caller.stateless("retrieve-data", users[calls % len(users)], key="x")[0] == 200
        return 0

    before = seconds()
    with ThreadPoolExecutor(16) as pool:
        calls = sum(pool.map(call, range(16)))
    return (seconds() - before) / calls


def give_connections(folder: Path) -> bool:
    """Call on one connection for one user, and on another one for two users in turn, of different workers."""
    with fresh_host(asgi_server="workers", server_dirs=BUNDLED_SERVERS) as host:
        until(lambda: "serves with 2 workers" in host.log(), 20)
        ring = Ring(["0", "1"])
        owners = {ring.owner(f"{SERVER}/{user}".encode()): user for user in map("given-{}".format, range(40))}
        times: dict[str, list[float]] = {"owner's worker": [], "another worker": []}
        with Caller(host.base_url, "") as stays, Caller(host.base_url, "") as moves:
            for number in range(2 * GIVEN_CALLS):
                user = owners[str(number % 2)]
                for name, caller, whose in (("owner's worker", stays, owners["0"]), ("another worker", moves, user)):
                    started = time.perf_counter()
                    status, _ = caller.stateless("retrieve-data", whose, key="x")
                    times[name].append(time.perf_counter() - started)
                    assert status == 200
        for name, values in times.items():
            told(f"call on a connection that the {name} has", values[100:])
        given, relayed = host.metric("gumcp_given_connections_total"), host.metric("gumcp_relayed_requests_total")
        print(f"  {given:.0f} connections were given to the other worker, {relayed:.0f} requests relayed")
        medians, tails = ([percentile(values[100:], share) for values in times.values()] for share in (0.5, 0.99))
        return medians[1] - medians[0] <= 0.0005 and tails[1] - tails[0] <= 0.001


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


def start_deadly_server(folder: Path) -> bool:
    """Add a server that ends its process when it is imported, and reload: workers die until it is gone."""
    servers = folder / "servers"
    shutil.copytree(BUNDLED_SERVERS / SERVER, servers / SERVER)
    with fresh_host(asgi_server="workers", server_dirs=servers) as host:
        until(lambda: "serves with 2 workers" in host.log(), 20)
        (servers / "deadly").mkdir()
        (servers / "deadly" / "main.py").write_text("import os\nos._exit(7)\n")
        for worker in workers_of(host):
            worker.kill()
        shares = []
        for seconds in (DEADLY_SECONDS / 2, DEADLY_SECONDS):
            before, started = _cpu_of_family(host.pid), time.monotonic()
            time.sleep(seconds)
            shares.append((_cpu_of_family(host.pid) - before) / (time.monotonic() - started))
            ended = host.log().count("ended with status 7")
            print(f"  {ended} workers have ended; {shares[-1]:.1%} of a core in the last {seconds:.0f} s", flush=True)
        (servers / "deadly" / "main.py").unlink()
        with Caller(host.base_url, "deadly:key") as caller:
            until(lambda: len(workers_of(host)) == 2, 60)
            status = caller.stateless("retrieve-data", key="x")[0]
        print(f"  without it: {status}")
        return shares[-1] < 0.05 and status == 200


def _cpu_of_family(pid: int) -> float:
    """CPU time of a process and of all its children that have ended, in seconds."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


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
        for status in sorted({status for status, _ in answers}):
            print(f"  {status}: {max(seconds for found, seconds in answers if found == status):.2f} s at most")
        subprocess.run(["ip", "-n", there, "link", "set", "vb", "up"], check=True)
        return holds and longest < 2.0 and last == 200


def clients(folder: Path) -> bool:
    conformance = [sys.executable, "tests/conformance/run.py", "--repeat", str(CONFORMANCE_RUNS)]
    statuses = [subprocess.run([*conformance, "--server", "workers"], cwd=ROOT).returncode]
    with running_topology(folder) as topology:
        base = topology.base_url.replace("127.0.0.1", "localhost")
        matrix = [sys.executable, "tests/matrix/run.py", "--url", f"{base}/everything/ada:key"]
        statuses += [
            subprocess.run(command, cwd=ROOT).returncode
            for command in ([*conformance, "--url", f"{base}/everything/conformance"], matrix)
        ]
    return statuses == [0, 0, 0]


def main() -> int:
    parts = {
        "relays": relays,
        "given": give_connections,
        "cpu": compare_cpu,
        "redis": redis,
        "postgresql": postgresql,
        "pairs": pairs,
        "least_conn": least_conn,
        "frozen": freeze_worker,
        "deadly": start_deadly_server,
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
