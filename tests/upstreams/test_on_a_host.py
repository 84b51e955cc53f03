"""Commands and remote URLs on a real host: transports, admin, restarts, and what is left when the host is killed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.sse import sse_client

from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import PLAIN_SERVERS, until
from tests.support.upstreams import TALKING_CHILD

ENTRY = {"command": sys.executable, "args": ["-S", str(TALKING_CHILD)], "env": {"KEY": "${api_key}"}}
CANARY = "s3cret-canary-of-a-caller"


def write_entry(directory: Path, name: str, entry: dict[str, Any]) -> None:
    folder = directory / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.json").write_text(json.dumps(entry))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def status(host: HostProcess, server: str) -> int:
    with host.stream(server, "ada:key") as stream:
        return stream.status


@pytest.fixture(scope="module")
def host(start_host: StartHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    directory = tmp_path_factory.mktemp("manifests")
    write_entry(directory, "talking", ENTRY)
    write_entry(directory, "missing", {"command": "/no/such/command"})
    write_entry(directory, "typo", {"comand": "npx"})
    with start_host(server_dirs=f"{directory}:{PLAIN_SERVERS}") as host:
        yield host


@pytest.mark.parametrize("transport", ["sse", "2025-11-25", "2026-07-28"])
async def test_command_is_served_on_every_transport(host: HostProcess, transport: str) -> None:
    url = host.url("talking", f"official-{transport}:{CANARY}")
    server: Any = sse_client(url) if transport == "sse" else url
    told: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    mode = "auto" if transport == "2026-07-28" else "legacy"
    async with Client(server, mode=mode, cache=None, read_timeout_seconds=20) as client:
        assert "echo" in [tool.name for tool in (await client.list_tools()).tools]
        await client.call_tool("progress", {}, progress_callback=on_progress)
        assert told == [1, 2, 3]
        result = await client.call_tool("fail", {})
        assert result.is_error


def test_command_that_cannot_start_is_a_503_and_the_operator_finds_why(host: HostProcess) -> None:
    condition = "SELECT condition FROM records_serverrecord WHERE name = 'missing' AND condition != ''"
    # Before anybody has used it.
    assert until(lambda: host.rows(condition))[0]["condition"] == "its command /no/such/command does not exist"
    answer = host.stream("missing", "ada:key").refusal()
    assert answer.status == 503
    assert "cannot be started" in answer.json["error"]
    until(lambda: "No such file or directory: '/no/such/command'" in host.log())


def test_manifest_with_a_typo_is_a_failed_server_and_stops_nobody(host: HostProcess) -> None:
    rows = until(lambda: host.rows("SELECT reason FROM records_serverrecord WHERE name = 'typo'"))
    assert "Did you mean command?" in rows[0]["reason"]
    assert host.stream("typo", "ada:key").refusal().status == 404


def test_remote_server_is_served_with_the_callers_key(host: HostProcess, start_host: StartHost, tmp_path: Path) -> None:
    write_entry(
        tmp_path,
        "remote",
        {"url": f"{host.base_url}/workshop/${{user_id}}:${{api_key}}", "headers": {"X-Note": "for ${user_id}"}},
    )
    write_entry(tmp_path, "nowhere", {"url": f"{host.base_url}/no-such-server/x"})
    with start_host(server_dirs=str(tmp_path)) as front:
        with front.session("remote", f"ada:{CANARY}") as stream:
            assert stream.call("echo", text="through two hosts") == "through two hosts"
            assert stream.call("whoami").startswith("ada ")
        answer = front.stream("nowhere", "ada:key").refusal()
        assert (answer.status, "no MCP endpoint at this URL (status 404)" in answer.json["error"]) == (503, True)
        assert CANARY not in front.log()


def test_servers_file_is_served_and_followed_when_it_changes(start_host: StartHost, tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"

    def write(**entries: dict[str, Any]) -> None:
        file.write_text(json.dumps({"mcpServers": entries}))

    write(steady=ENTRY, broken={"command": "/no/such/command"})
    with start_host(server_dirs=PLAIN_SERVERS, GUMCP_SERVERS_FILE=str(file)) as host:
        with host.session("steady", "ada:key") as stream:
            pid = stream.call("pid")
            assert host.stream("broken", "ada:key").refusal().status == 503
            write(steady=ENTRY, broken=ENTRY)
            until(lambda: status(host, "broken") == 200, 5)
            # An entry that is as it was keeps its processes.
            assert stream.call("pid") == pid
            write(steady=ENTRY)
            until(lambda: status(host, "broken") == 404)
        file.write_text("{")
        until(lambda: "mcp.json: The file is not JSON" in host.log())


def test_nothing_is_left_when_the_host_is_killed(start_host: StartHost, tmp_path: Path) -> None:
    write_entry(tmp_path, "talking", ENTRY)
    with start_host(server_dirs=str(tmp_path)) as host:
        with host.session("talking", "ada:key") as stream:
            pids = [int(stream.call("pid")), int(stream.call("spawn"))]
            assert all(is_alive(pid) for pid in pids)
            host.kill()
        until(lambda: not any(is_alive(pid) for pid in pids), 3)


def test_secrets_of_callers_stay_out_of_what_the_host_writes(host: HostProcess) -> None:
    with host.session("talking", f"canary:{CANARY}") as stream:
        child = int(stream.call("pid"))
        assert json.loads(stream.call("environment"))["KEY"] == CANARY
        parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
        for pid in (child, parent, os.getpid(), host.pid):
            assert CANARY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert CANARY.encode() not in Path(f"/proc/{parent}/environ").read_bytes()
    assert CANARY not in host.log()
    assert CANARY not in host.metrics_text()
    assert CANARY not in str(host.rows("SELECT * FROM records_serverrecord"))
