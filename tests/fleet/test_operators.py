"""What operators do reaches every worker, whichever process they did it in, and a key has one limit for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest

from gateway.fleet.ring import Ring
from tests.support.host_process import HostProcess, StartHost
from tests.support.issued_keys import IssuedKey, change_row, issue, revoke
from tests.support.processes import PLAIN_SERVERS, manage, until
from tests.support.server_folders import SOUND_SERVER, write_main
from tests.support.streamable import StatelessClient

REACHED_SECONDS: Final = 2.0


@pytest.fixture(scope="module")
def loads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server `notes` writes a letter each time that it is loaded, into a file for each process."""
    return tmp_path_factory.mktemp("loads")


@pytest.fixture(scope="module")
def fleet(start_host: StartHost, loads: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    folder = tmp_path_factory.mktemp("servers")
    source = f"import os\nopen(f'{loads}/{{os.getpid()}}', 'a').write('x')\n{dedent(SOUND_SERVER)}"
    write_main(folder, "notes", source)
    with start_host(
        asgi_server="workers",
        server_dirs=f"{PLAIN_SERVERS}:{folder}",
        GUMCP_AUTH="keys",
        GUMCP_LIMIT_REQUESTS_PER_KEY="200/hour",
    ) as host:
        until(lambda: "serves with 2 workers" in host.log())
        yield host


def owner(key: IssuedKey, server: str = "workshop") -> str:
    return Ring(["0", "1"]).owner(f"{server}/{key.key}".encode())


def keys(host: HostProcess, name: str) -> list[IssuedKey]:
    """Four keys, of which each worker owns at least one."""
    issued = [issue(host.data_dir, f"{name}-{number}") for number in range(4)]
    while len({owner(key) for key in issued}) < 2:
        issued[0] = issue(host.data_dir, f"{name}-0")
    return issued


def status(host: HostProcess, key: IssuedKey, server: str = "workshop") -> int:
    client = StatelessClient(host, server, key.session_key)
    with client.start("echo", text="x") as request:
        return request.status


def processes_of(host: HostProcess, table: str, user: str) -> set[str]:
    query = f"SELECT DISTINCT process_id FROM records_{table} WHERE user_id LIKE ?"
    return {row["process_id"] for row in host.rows(query, f"{user}%")}


def test_ended_sessions_end_in_both_workers(fleet: HostProcess) -> None:
    issued = keys(fleet, "ended")
    streams = [fleet.session("workshop", key.session_key) for key in issued]
    until(lambda: len(processes_of(fleet, "sessionrecord", "ended")) == 2)
    until(lambda: len(fleet.rows("SELECT id FROM records_sessionrecord WHERE user_id LIKE 'ended%'")) == len(issued))
    change_row(fleet.data_dir, "UPDATE records_sessionrecord SET is_end_requested = 1 WHERE user_id LIKE 'ended%'")
    opened = "SELECT id FROM records_sessionrecord WHERE user_id LIKE 'ended%' AND state = 'open'"
    until(lambda: not fleet.rows(opened), REACHED_SECONDS + 1)
    for stream in streams:
        stream.close()


def test_revoked_keys_are_refused_by_both_workers(fleet: HostProcess) -> None:
    issued = keys(fleet, "revoked")
    assert {status(fleet, key) for key in issued} == {200}
    until(lambda: len(processes_of(fleet, "instancerecord", "revoked")) == 2)
    for key in issued:
        revoke(fleet.data_dir, key)
    until(lambda: {status(fleet, key) for key in issued} == {401}, REACHED_SECONDS)


def test_server_that_is_switched_off_is_off_in_both_workers(fleet: HostProcess) -> None:
    issued = keys(fleet, "switched")
    change = "UPDATE records_serverrecord SET is_enabled = ? WHERE name = 'workshop'"
    assert {status(fleet, key) for key in issued} == {200}
    change_row(fleet.data_dir, change, 0)
    until(lambda: {status(fleet, key) for key in issued} == {503}, REACHED_SECONDS)
    change_row(fleet.data_dir, change, 1)
    until(lambda: {status(fleet, key) for key in issued} == {200}, REACHED_SECONDS)


def test_key_has_its_limit_once_and_not_once_for_each_worker(fleet: HostProcess) -> None:
    """One key on several servers has several owners."""
    servers = ["workshop", "bystander"]
    key = issue(fleet.data_dir, "limited-0")
    while len({owner(key, server) for server in servers}) < 2:
        key = issue(fleet.data_dir, "limited-0")
    answers = [status(fleet, key, servers[number % 2]) for number in range(230)]
    # Each worker may waste one allowance, a fiftieth of the limit.
    assert 192 <= answers.count(200) <= 200
    assert answers.count(200) + answers.count(429) == 230
    until(lambda: len(processes_of(fleet, "instancerecord", "limited")) == 2)


def test_reload_reaches_both_workers(fleet: HostProcess, loads: Path) -> None:
    done = manage("reload", "notes", data_dir=fleet.data_dir)
    assert done.returncode == 0, done.stderr
    assert [path.read_text() for path in loads.iterdir()] == ["xx", "xx"]
