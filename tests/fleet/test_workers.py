"""Two workers behind one port: who serves whom, what a death costs, and how they stop."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from mcp import Client
from mcp.client.sse import sse_client

from gateway.console.playground import PREFIX
from tests.support.admin_site import MAKE_USERS, Admin
from tests.support.host_process import HostProcess, StartHost, has_ended, workers_of
from tests.support.processes import BUNDLED_SERVERS, PLAIN_SERVERS, manage, until
from tests.support.serving_process import statuses
from tests.support.streamable import ACCEPT_BOTH, StatelessClient, initialize_message
from tests.support.upstreams import TALKING_CHILD
from tests.support.wire import JSON, request

SERVERS = f"{BUNDLED_SERVERS}:{PLAIN_SERVERS}"


@pytest.fixture(scope="module")
def fleet(start_host: StartHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    commands = tmp_path_factory.mktemp("commands")
    (commands / "talking").mkdir()
    manifest = {"command": sys.executable, "args": ["-S", str(TALKING_CHILD)]}
    (commands / "talking" / "server.json").write_text(json.dumps(manifest))
    with start_host(asgi_server="workers", server_dirs=f"{SERVERS}:{commands}") as host:
        until(lambda: "serves with 2 workers" in host.log())
        yield host


@pytest.mark.parametrize("transport", ["sse", "2025-11-25", "2026-07-28"])
async def test_new_connection_for_each_request_finds_what_the_last_one_left(fleet: HostProcess, transport: str) -> None:
    async def pair(user: int) -> str:
        url = fleet.url("simple-tools-server", f"{transport}-{user}:key-{user}")
        mode: Any = "auto" if transport == "2026-07-28" else "legacy"
        for tool, arguments in (
            ("store-data", {"key": "colour", "value": f"green-{user}"}),
            ("retrieve-data", {"key": "colour"}),
        ):
            server: Any = sse_client(url) if transport == "sse" else url
            async with Client(server, mode=mode, cache=None, read_timeout_seconds=20) as client:
                result: Any = await client.call_tool(tool, arguments)
        return str(result.content[0].text)

    found = await asyncio.gather(*(pair(user) for user in range(12)))
    assert [f"green-{user}" in text for user, text in enumerate(found)] == [True] * 12, found


async def test_child_of_an_identity_is_the_one_of_its_owner_whichever_worker_is_reached(fleet: HostProcess) -> None:
    async def pids(user: int) -> set[str]:
        found = set()
        for mode in ("auto", "legacy") * 2:
            server: Any = fleet.url("talking", f"user-{user}:key")
            async with Client(server, mode=mode, cache=None, read_timeout_seconds=20) as client:
                result: Any = await client.call_tool("pid", {})
            found.add(result.content[0].text)
        return found

    found = await asyncio.gather(*(pids(user) for user in range(4)))
    assert [len(pids) for pids in found] == [1] * 4
    assert len(set.union(*found)) == 4
    launchers = [psutil.Process(int(pid)).ppid() for pid in set.union(*found)]
    parents = {psutil.Process(launcher).ppid() for launcher in launchers}
    assert parents <= {worker.pid for worker in workers_of(fleet)}


def test_stream_of_a_relayed_session_stays_open_and_its_messages_find_it(fleet: HostProcess) -> None:
    for user in range(6):
        with fleet.session("workshop", f"streams-{user}:key") as stream:
            assert stream.call("echo", text="x" * 300_000) == "x" * 300_000


def test_connection_that_callers_of_both_workers_share_is_given_to_and_fro(fleet: HostProcess) -> None:
    before = fleet.metric("gumcp_given_connections_total")
    statuses = []
    connection = http.client.HTTPConnection("127.0.0.1", fleet.port, timeout=20)
    with contextlib.closing(connection):
        for number in range(40):
            body = json.dumps(initialize_message())
            connection.request("POST", f"/workshop/shared-{number % 8}", body, {**JSON, **ACCEPT_BOTH})
            response = connection.getresponse()
            statuses.append((response.status, b'"serverInfo"' in response.read()))
    assert set(statuses) == {(200, True)}
    assert fleet.metric("gumcp_given_connections_total") > before


@pytest.mark.parametrize("piece_bytes", [1000, 30_000, 1_000_000])
def test_pipelined_requests_of_both_workers_are_answered_in_order(fleet: HostProcess, piece_bytes: int) -> None:
    """Whatever a worker has read of them when it gives the connection to the other one."""
    count = 40
    requests = bytearray()
    for number in range(count):
        message = initialize_message(request_id=number, padding="x" * (number % 3 * 5000))
        body = json.dumps(message).encode()
        requests += b"POST /workshop/pipe-%d HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" % (
            number % 7
        )
        requests += b"Accept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    def send(connection: socket.socket) -> None:
        for start in range(0, len(requests), piece_bytes):
            connection.sendall(requests[start : start + piece_bytes])

    answers = b""
    with socket.create_connection(("127.0.0.1", fleet.port), timeout=20) as connection, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send, connection)
        while len(ids := re.findall(rb'"id":\s*(\d+)', answers)) < count:
            received = connection.recv(65536)
            assert received, answers
            answers += received
        sent.result()
    assert statuses(answers) == [200] * count
    assert [int(found) for found in ids] == list(range(count))


def test_messages_of_a_playground_page_find_its_session_whichever_worker_they_reach(fleet: HostProcess) -> None:
    made = manage("shell", "--no-imports", "-c", MAKE_USERS, data_dir=fleet.data_dir)
    assert made.returncode == 0, made.stderr
    operator = Admin(fleet, "root", "root-password")
    for user in range(6):
        place = f"{PREFIX}workshop/page-{user}"
        with operator.post_json(f"{place}/open", {}) as stream:
            assert stream.readline() == b"event: session\r\n"
            session_id = json.loads(stream.readline().removeprefix(b"data: "))["id"]
            for number in range(4):
                headers = {"Mcp-Session-Id": session_id}
                with operator.post_json(f"{place}/send", request("ping", None, number), headers) as answer:
                    assert answer.status == 202


def test_gauge_counts_the_open_streams_of_all_workers_and_falls_when_they_leave(fleet: HostProcess) -> None:
    streams = [fleet.session("workshop", f"gauge-{user}:key") for user in range(6)]
    until(lambda: fleet.metric("gumcp_active_connections", server="workshop") == 6)
    for stream in streams:
        stream.close()
    until(lambda: fleet.metric("gumcp_active_connections", server="workshop") == 0)


def test_headers_that_only_peers_may_send_are_ignored_from_clients(fleet: HostProcess) -> None:
    for user in range(4):
        with fleet.stream("workshop", f"forged-{user}:key", {"x-gumcp-client": "10.9.9.9 1"}) as stream:
            stream.initialize()
    rows = until(lambda: fleet.rows("SELECT address FROM records_sessionrecord WHERE user_id LIKE 'forged-%'"))
    assert {row["address"] for row in rows} == {"127.0.0.1"}


def test_killed_worker_is_replaced_and_the_other_one_serves_meanwhile(fleet: HostProcess) -> None:
    before = fleet.metric("gumcp_connection_total", server="workshop")
    victim, survivor = workers_of(fleet)
    os.kill(victim.pid, signal.SIGKILL)

    def call(user: int) -> int:
        client = StatelessClient(fleet, "workshop", f"killed-{user}:key")
        with client.start("echo", text=str(user)) as request:
            return request.status

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(call, range(40)))
    assert set(statuses) == {200}
    assert survivor.is_running()
    until(lambda: len(workers_of(fleet)) == 2 and victim.pid not in [worker.pid for worker in workers_of(fleet)])
    # Until the new one serves, for the tests that follow. On a busy machine requests are not held for long enough.
    until(lambda: {call(user) for user in range(8)} == {200}, 60)
    assert fleet.metric("gumcp_connection_total", server="workshop") >= before


def test_reload_replaces_every_worker_without_a_failed_call(fleet: HostProcess) -> None:
    before = {worker.pid for worker in workers_of(fleet)}
    statuses: list[int] = []

    def call(user: int) -> None:
        client = StatelessClient(fleet, "workshop", f"reload-{user}:key")
        while {worker.pid for worker in workers_of(fleet)} & before:
            with client.start("echo", text="during the reload") as request:
                statuses.append(request.status)

    os.kill(fleet.pid, signal.SIGHUP)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))
    assert len(statuses) > 10
    assert set(statuses) == {200}
    until(lambda: "The reload is done" in fleet.log())


def test_idle_connections_outlive_their_worker(fleet: HostProcess) -> None:
    """More of them than the system keeps for a process that takes them."""

    def call(connection: http.client.HTTPConnection, number: int) -> tuple[int, Any]:
        body = json.dumps(initialize_message())
        connection.request("POST", f"/workshop/idle-{number}", body, {**JSON, **ACCEPT_BOTH})
        address = connection.sock.getsockname()
        response = connection.getresponse()
        response.read()
        return response.status, address

    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", fleet.port, timeout=20)))
            for _ in range(60)
        ]
        before = [call(connection, number) for number, connection in enumerate(connections)]
        workers, reloads = workers_of(fleet), fleet.log().count("The reload is done")
        os.kill(fleet.pid, signal.SIGHUP)
        until(lambda: fleet.log().count("The reload is done") > reloads, 60)
        until(lambda: all(has_ended(worker) for worker in workers), 60)
        after = [call(connection, number) for number, connection in enumerate(connections)]
    assert {status for status, _ in before} == {200}
    assert after == before


def test_connection_whose_stream_a_reload_has_ended_goes_on(fleet: HostProcess) -> None:
    """Clients put their next request on it as soon as the stream has ended."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", fleet.port, timeout=60)) as connection:
        path, headers = "/workshop/streaming", {**JSON, **ACCEPT_BOTH}
        connection.request("POST", path, json.dumps(initialize_message()), headers)
        response = connection.getresponse()
        response.read()
        headers["mcp-session-id"] = response.headers["mcp-session-id"]
        connection.request("GET", path, headers={**headers, "accept": "text/event-stream"})
        stream = connection.getresponse()
        assert stream.status == 200
        address, reloads = connection.sock.getsockname(), fleet.log().count("The reload is done")
        os.kill(fleet.pid, signal.SIGHUP)
        stream.read()
        for number in range(3):
            connection.request("POST", path, json.dumps({"jsonrpc": "2.0", "id": number, "method": "ping"}), headers)
            assert connection.sock.getsockname() == address
            response = connection.getresponse()
            response.read()
            assert response.status == 200
        until(lambda: fleet.log().count("The reload is done") > reloads, 60)


def test_workers_stop_with_their_supervisor(start_host: StartHost) -> None:
    with start_host(asgi_server="workers", server_dirs=SERVERS) as host:
        pids = until(lambda: [worker.pid for worker in workers_of(host)])
        host.kill()
        until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_workers_that_cannot_start_end_the_supervisor(start_host: StartHost, write_server: Any) -> None:
    directory = write_server("deadly", "import os; os._exit(7)")
    with (
        pytest.raises(Exception, match="No worker has become ready"),
        start_host(asgi_server="workers", server_dirs=directory),
    ):
        pass
