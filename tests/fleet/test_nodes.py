"""Two nodes of two workers behind nginx, on PostgreSQL and Redis: one host for its clients, whatever ends."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import psycopg
import pytest
from mcp import Client
from mcp.client.sse import sse_client

from gateway.fleet.ring import Ring
from tests.fleet.topology import (
    Node,
    ProgramsMissing,
    Topology,
    program,
    require_programs,
    running_haproxy,
    running_topology,
)
from tests.support.deadlines import within
from tests.support.processes import until
from tests.support.streamable import ACCEPT_BOTH, initialize_message
from tests.support.wire import JSON


@pytest.fixture(scope="module")
def fleet(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    try:
        require_programs()
    except ProgramsMissing as error:
        pytest.skip(f"NOT TESTED: several machines. {error}")
    folder = tmp_path_factory.mktemp("fleet")
    # Debian's PostgreSQL has a user of its own.
    with running_topology(folder, GUMCP_SHUTDOWN_GRACE_SECONDS="3") as topology:
        first, second = topology.nodes
        until(lambda: others_of(first) == second.name and others_of(second) == first.name)
        yield topology


def relayed(topology: Topology, to: str) -> float:
    return sum(node.metric("gumcp_relayed_requests_total", to=to) for node in topology.nodes)


async def pair(base_url: str, transport: str, user: int, again_at: str | None = None) -> str:
    """Store something, and ask for it on another connection."""
    path = f"/simple-tools-server/{transport}-{user}:key-{user}"
    mode: Any = "auto" if transport == "2026-07-28" else "legacy"
    result: Any = None
    for base, tool, arguments in (
        (base_url, "store-data", {"key": "colour", "value": f"green-{user}"}),
        (again_at or base_url, "retrieve-data", {"key": "colour"}),
    ):
        server: Any = sse_client(base + path) if transport == "sse" else base + path
        async with Client(server, mode=mode, cache=None, read_timeout_seconds=20) as client:
            result = await client.call_tool(tool, arguments)
    return str(result.content[0].text)


@pytest.mark.parametrize("transport", ["sse", "2025-11-25", "2026-07-28"])
async def test_our_balancer_sends_everybody_to_the_owner_and_nothing_is_relayed_between_nodes(
    fleet: Topology, transport: str
) -> None:
    before = relayed(fleet, "node")
    found = await asyncio.gather(*(pair(fleet.base_url, transport, user) for user in range(8)))
    assert [f"green-{user}" in text for user, text in enumerate(found)] == [True] * 8, found
    assert relayed(fleet, "node") == before


@pytest.mark.parametrize("transport", ["sse", "2025-11-25", "2026-07-28"])
async def test_any_other_balancer_is_only_slower(fleet: Topology, transport: str) -> None:
    before = relayed(fleet, "node")
    first, second = (node.base_url for node in fleet.nodes)
    found = await asyncio.gather(*(pair(first, transport, user, second) for user in range(100, 108)))
    assert [f"green-{user}" in text for user, text in enumerate(found, 100)] == [True] * 8, found
    assert relayed(fleet, "node") > before


@pytest.mark.skipif(program("haproxy") is None, reason="NOT TESTED: haproxy is not installed: apt-get install haproxy")
async def test_haproxy_finds_a_machine_for_everybody(fleet: Topology) -> None:
    with running_haproxy(fleet) as base_url:
        found = await asyncio.gather(*(pair(base_url, "2025-11-25", user) for user in range(200, 206)))
    assert [f"green-{user}" in text for user, text in enumerate(found, 200)] == [True] * 6, found


def post(node: Node | Topology, user: str, message: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
    address, port = node.base_url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(address, int(port), timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", f"/workshop/{user}", json.dumps(message), {**JSON, **ACCEPT_BOTH, **(headers or {})})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


@pytest.mark.parametrize("headers", [{}, {"x-gumcp-client": "10.0.0.9 1", "x-gumcp-signature": "1 2 3"}])
def test_peer_port_answers_nobody_without_a_signature(fleet: Topology, headers: dict[str, str]) -> None:
    node = fleet.nodes[0]
    connection = http.client.HTTPConnection(node.address, node.peer_port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/workshop/ada", json.dumps(initialize_message()), {**JSON, **headers})
        assert connection.getresponse().status == 403


def others_of(node: Node) -> str:
    """What a node said last of the other nodes."""
    said = [line for line in node.log().splitlines() if "Nodes beside this one" in line]
    return said[-1].rpartition(": ")[2] if said else ""


@pytest.fixture
def leaving(fleet: Topology) -> Iterator[Node]:
    """A node that the test ends."""
    yield fleet.nodes[1]
    fleet.start(fleet.nodes[1])
    until(lambda: others_of(fleet.nodes[0]) == fleet.nodes[1].name)


def test_node_that_drains_leaves_the_ring_and_no_request_fails(fleet: Topology, leaving: Node) -> None:
    staying, process = fleet.nodes[0], leaving.process
    assert process is not None
    statuses: list[int] = []
    sessions = [(user, opened_session(fleet, user)) for user in map("deploy-{}".format, range(8))]

    def call(number: int) -> None:
        while process.poll() is None or others_of(staying) != "none":
            statuses.append(post(fleet, f"drain-{number}", initialize_message())[0])

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call, number) for number in range(4)]
        process.send_signal(signal.SIGTERM)
        for done in calls:
            done.result()
    assert process.returncode == 0
    assert set(statuses) == {200}
    assert [post(fleet, user, PING, session)[0] for user, session in sessions] == [200] * 8


def test_users_of_a_node_that_dies_are_told_to_try_again_and_soon_served_by_another(
    fleet: Topology, leaving: Node
) -> None:
    staying = fleet.nodes[0]
    ring = Ring([staying.name, leaving.name])
    victim = next(user for user in map("death-{}".format, range(200)) if owner(ring, user) == leaving.name)
    session = opened_session(staying, victim)
    until(lambda: kept_sessions(fleet, victim))
    killed = [psutil.Process(leaving.pid), *psutil.Process(leaving.pid).children(recursive=True)]
    for process in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    until(lambda: all(has_ended(process) for process in killed))
    answers: list[tuple[int, str | None, float]] = []
    until(lambda: answers.append(timed_post(staying, victim)) or answers[-1][0] == 200)
    statuses = [status for status, _, _ in answers]
    assert set(statuses) <= {200, 502, 503}
    # A request on a connection that a worker had kept is cut, and not repeated. Each worker may have kept one.
    assert statuses.count(502) <= fleet.workers
    assert {retry_after for status, retry_after, _ in answers if status == 503} <= {"2"}
    assert max(seconds for _, _, seconds in answers) < within(2)
    # The session that it had with the dead node goes on, once all workers know that the node is dead.
    pinged: list[int] = []
    until(lambda: pinged.append(post(staying, victim, PING, session)[0]) or pinged[-1] == 200)
    assert set(pinged) <= {200, 502, 503}


def has_ended(process: psutil.Process) -> bool:
    """Whether a process can serve nothing any more."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


PING = {"jsonrpc": "2.0", "id": 2, "method": "ping"}


def kept_sessions(fleet: Topology, user: str) -> int:
    """How many sessions of a user can be restored."""
    query = (
        "SELECT count(*) FROM records_restorablesession JOIN records_sessionrecord USING (id)"
        " WHERE records_sessionrecord.user_id = %s"
    )
    with psycopg.connect(fleet.database_url) as database:
        row = database.execute(query, [user]).fetchone()
    assert row is not None
    return int(row[0])


def opened_session(node: Node | Topology, user: str) -> dict[str, str]:
    """The headers of a session."""
    status, headers, _ = post(node, user, initialize_message())
    assert status == 200
    session = {"Mcp-Session-Id": str(headers["Mcp-Session-Id"])}
    assert post(node, user, {"jsonrpc": "2.0", "method": "notifications/initialized"}, session)[0] == 202
    return session


def owner(ring: Ring, user: str) -> str:
    return ring.owner(f"workshop/{user}".encode())


def timed_post(node: Node, user: str) -> tuple[int, str | None, float]:
    started = time.monotonic()
    status, headers, _ = post(node, user, initialize_message())
    return status, headers["Retry-After"], time.monotonic() - started
