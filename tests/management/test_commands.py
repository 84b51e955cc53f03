import asyncio
import json
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.exceptions import MCPError

from tests.support.admin_site import Admin
from tests.support.host_process import HostProcess, StartHost, running_host
from tests.support.processes import (
    BUNDLED_SERVERS,
    PLAIN_SERVERS,
    ROOT,
    START_SECONDS,
    environment,
    free_port,
    is_listening,
    manage,
    run,
    running,
)
from tests.support.server_folders import SOUND_SERVER, WriteServer

pytestmark = pytest.mark.usefixtures("processes")

# -- docs/commands.md -------------------------------------------------------------------------------------------------


def test_page_lists_every_command() -> None:
    listed = re.findall(r"^\| `manage.py (\w+)", (ROOT / "docs" / "commands.md").read_text("utf-8"), re.MULTILINE)
    written = [path.stem for path in (ROOT / "gateway" / "management" / "commands").glob("[a-z]*.py")]
    assert sorted(listed) == sorted(written)


# -- list_servers: more in test_list_servers ---------------------------------------------------------------------------


def test_list_servers_prints_a_table_and_needs_no_database(tmp_path: Path) -> None:
    done = manage("list_servers", data_dir=tmp_path / "new", DATABASE_URL="sqlite:////no/such/db")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "FOLDER", "REASON"]
    assert [line.split()[:2] for line in lines[1:4]] == [
        [name, "loaded"] for name in ("bystander", "moody", "workshop")
    ]
    assert lines[-1] == "3 of 3 loaded"


def test_list_servers_ends_although_a_server_blocks_while_it_is_loaded(
    tmp_path: Path, write_server: WriteServer
) -> None:
    write_server("blocking", "import time\ntime.sleep(600)")
    directory = write_server("sound")
    settings = {"GUMCP_SERVER_DIRS": str(directory), "GUMCP_LOAD_TIMEOUT_SECONDS": "0.5"}
    done = manage("list_servers", data_dir=tmp_path, **settings)
    assert done.returncode == 1
    assert re.search(r"^blocking +failed +.*main.py was not loaded after 0.5 seconds", done.stdout, re.MULTILINE)
    assert re.search(r"^sound +loaded", done.stdout, re.MULTILINE)


STAYING_THREAD = """
    import threading
    threading.Thread(target=threading.Event().wait).start()
"""


@pytest.mark.parametrize("status", [0, 1])
def test_list_servers_ends_although_a_server_has_left_a_thread_behind(
    tmp_path: Path, write_server: WriteServer, status: int
) -> None:
    directory = write_server("staying", STAYING_THREAD + SOUND_SERVER)
    if status:
        write_server("broken", "1 / 0")
    done = manage("list_servers", data_dir=tmp_path, GUMCP_SERVER_DIRS=str(directory))
    assert done.returncode == status
    assert done.stdout.splitlines()[-1] == f"1 of {1 + status} loaded"


def test_list_servers_prints_json_that_parses_whatever_servers_print(tmp_path: Path, write_server: WriteServer) -> None:
    write_server("noisy", "import os\nprint('printed at import')\nos.write(1, b'written at import')\n1 / 0")
    directory = write_server("sound")
    done = manage("list_servers", "--json", data_dir=tmp_path, GUMCP_SERVER_DIRS=str(directory))
    assert done.returncode == 1
    rows = json.loads(done.stdout)
    assert [(row["name"], row["status"]) for row in rows] == [("sound", "loaded"), ("noisy", "failed")]
    assert "ZeroDivisionError" in rows[1]["reason"]
    assert rows[0]["folder"] == str(directory / "sound")


# -- run_stdio -------------------------------------------------------------------------------------------------------


def stdio(tmp_path: Path, *arguments: str, **settings: str) -> StdioServerParameters:
    env = environment(tmp_path, **settings)
    return StdioServerParameters(
        command=sys.executable, args=["manage.py", "run_stdio", *arguments], env=env, cwd=str(ROOT)
    )


async def test_run_stdio_serves_the_official_client_quietly_and_prints_to_stderr(
    tmp_path: Path, write_server: WriteServer
) -> None:
    source = (
        (PLAIN_SERVERS / "workshop" / "main.py")
        .read_text()
        .replace('return str(arguments["text"])', 'print("printed in a tool"); return str(arguments["text"])')
    )
    directory = write_server("chatty", 'print("printed at import")\n' + source)
    parameters = stdio(tmp_path, "chatty", "--user-id", "ada", GUMCP_SERVER_DIRS=str(directory), GUMCP_API_KEY="k")
    with (tmp_path / "stderr").open("w") as log:
        async with (
            asyncio.timeout(20),
            stdio_client(parameters, errlog=log) as (reader, writer),
            ClientSession(reader, writer) as session,
        ):
            result = await session.initialize()
            assert result.server_info.name == "workshop"
            tools = await session.list_tools()
            assert "echo" in {tool.name for tool in tools.tools}
            for tool, arguments, text in (
                ("echo", {"text": "hi"}, "hi"),
                ("whoami", {}, "ada 1 MainThread"),
                ("compare_key", {"key": "k"}, "True"),
            ):
                answer = await session.call_tool(tool, arguments)
                assert answer.content[0].text == text  # type: ignore[union-attr]
    log_text = (tmp_path / "stderr").read_text()
    assert "printed at import" in log_text
    assert "printed in a tool" in log_text
    assert "Loaded server" not in log_text


@pytest.mark.parametrize("start", ["", STAYING_THREAD], ids=["", "thread left behind"])
def test_run_stdio_ends_with_its_input(tmp_path: Path, write_server: WriteServer, start: str) -> None:
    directory = write_server("sound", start + SOUND_SERVER)
    done = subprocess.run(
        [sys.executable, "manage.py", "run_stdio", "--server", "sound"],
        cwd=ROOT,
        env=environment(tmp_path, GUMCP_SERVER_DIRS=str(directory)),
        input="",
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere",), "bystander, moody, workshop"),
        (("--user-id", "../ada", "workshop"), "must not contain"),
        (("--server", "workshop", "--user-id", ""), "no user id"),
        ((), "run_stdio NAME"),
        (("workshop", "--server", "moody"), "run_stdio NAME"),
    ],
)
def test_run_stdio_refuses_with_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence):
        call_command("run_stdio", *arguments)


PICKY_SERVER = """
    def server(user_id, api_key):
        raise ValueError(f"bad {api_key}")

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""


def test_run_stdio_shows_a_factorys_error_without_the_key(tmp_path: Path, write_server: WriteServer) -> None:
    directory = write_server("picky", PICKY_SERVER)
    settings = {"GUMCP_SERVER_DIRS": str(directory), "GUMCP_API_KEY": "canary-6d2f"}
    done = manage("run_stdio", "--server", "picky", data_dir=tmp_path, **settings)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0] == "CommandError: ValueError: bad [redacted]"
    assert "Traceback" not in done.stderr
    assert "picky/main.py" in done.stderr
    assert "canary-6d2f" not in done.stderr


def test_run_stdio_says_why_a_server_did_not_load(tmp_path: Path, write_server: WriteServer) -> None:
    directory = write_server("broken", "raise ValueError('half written')")
    done = manage("run_stdio", "--server", "broken", data_dir=tmp_path, GUMCP_SERVER_DIRS=str(directory))
    assert (done.returncode, done.stdout) == (1, "")
    assert "half written" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


async def test_run_stdio_takes_the_key_out_of_what_the_server_logs(tmp_path: Path, write_server: WriteServer) -> None:
    directory = write_server("workshop", (PLAIN_SERVERS / "workshop" / "main.py").read_text())
    settings = {"GUMCP_SERVER_DIRS": str(directory), "GUMCP_API_KEY": "canary-6d2f"}
    with (tmp_path / "stderr").open("w") as log:
        async with (
            asyncio.timeout(20),
            stdio_client(stdio(tmp_path, "--server", "workshop", **settings), errlog=log) as (reader, writer),
            ClientSession(reader, writer) as session,
        ):
            await session.initialize()
            with pytest.raises(MCPError):
                await session.call_tool("leak_key", {})
    log_text = (tmp_path / "stderr").read_text()
    assert "called by local with the key [redacted]" in log_text
    assert "canary-6d2f" not in log_text


# -- serve -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", ["GUMCP_PORT", "GUMCP_METRICS_PORT"])
def test_serve_says_which_port_is_in_use_and_what_to_do(tmp_path: Path, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        port = occupant.getsockname()[1]
        ports = {"GUMCP_PORT": str(free_port()), "GUMCP_METRICS_PORT": str(free_port()), taken: str(port)}
        done = manage("serve", "--prepare", data_dir=tmp_path, **ports)
    assert done.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use" in done.stderr
    assert f"{taken}=" in done.stderr
    assert "Traceback" not in done.stderr
    assert "password" not in done.stdout


def test_serve_says_that_it_cannot_listen_on_an_address_that_is_not_its_own(tmp_path: Path) -> None:
    done = manage("serve", "--host", "203.0.113.1", "--port", "8000", data_dir=tmp_path, GUMCP_AUTH="keys")
    assert done.returncode == 1
    assert done.stderr == "CommandError: Cannot listen on 203.0.113.1:8000: Cannot assign requested address.\n"


@pytest.mark.parametrize("command", [("migrate",), ("serve", "--prepare")])
def test_database_that_cannot_be_opened_ends_a_command_in_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    url = f"sqlite:///{tmp_path / 'nowhere' / 'gumcp.sqlite3'}"
    done = manage(*command, data_dir=tmp_path, DATABASE_URL=url, GUMCP_PORT=str(free_port()))
    assert done.returncode == 1
    expected = "The database cannot be used: unable to open database file. See DATABASE_URL and GUMCP_DATA_DIR"
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1


@contextmanager
def served(data_dir: Path, **settings: str) -> Iterator[HostProcess]:
    """Run `manage.py serve --prepare` with a folder of its own."""
    with running_host(data_dir, None, asgi_server="prepare", server_dirs=BUNDLED_SERVERS, **settings) as host:
        yield host


def test_first_run_of_serve_makes_an_operator_once_and_says_where_to_go_next(tmp_path: Path) -> None:
    with served(tmp_path) as host:
        text = host.log()
        assert text.index("Listening on TCP address") < text.index("guMCP serves")
        (password,) = re.findall(r"password +(\S+)", text)
        assert len(password) >= 16
        assert f"{host.base_url}/simple-tools-server/" in text
        assert f"{host.base_url}/admin/" in text
        assert f"http://127.0.0.1:{host.metrics_port}/metrics" in text
        client = json.loads("{" + text.partition("{")[2].rpartition("}")[0] + "}")
        assert client["mcpServers"]["simple-tools-server"]["url"].startswith(host.base_url)
        with urllib.request.urlopen(f"http://127.0.0.1:{host.metrics_port}/metrics", timeout=5) as response:
            assert b"gumcp_active_connections" in response.read()
        assert "Log out" in Admin(host, "operator", password).get("/admin/")
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("gumcp.sqlite3*"))
    assert password.encode() not in stored
    with served(tmp_path) as host:
        assert "password" not in host.log()


def test_first_run_of_serve_leaves_a_caller_who_is_called_operator_alone(
    tmp_path: Path, migrated_database: Path
) -> None:
    shutil.copy(migrated_database, tmp_path / "gumcp.sqlite3")
    done = manage("create_key", "operator", data_dir=tmp_path)
    assert done.returncode == 0, done.stderr
    with served(tmp_path) as host:
        assert re.search(r"^ +name +operator-2\n +password +\S+$", host.log(), re.MULTILINE)
    with closing(sqlite3.connect(tmp_path / "gumcp.sqlite3")) as database:
        users = database.execute("SELECT username, is_superuser FROM auth_user ORDER BY username").fetchall()
    assert users == [("operator", 0), ("operator-2", 1)]


def test_serve_that_checks_keys_says_how_to_make_one_and_where_it_goes(tmp_path: Path) -> None:
    with served(tmp_path, GUMCP_AUTH="keys") as host:
        text = host.log()
        (command,) = re.findall(r"^ +(.* manage.py .+)$", text, re.MULTILINE)
        # As one would paste it into a shell, whatever that takes for python.
        made = run("sh", "-c", command.replace("USER", "ada"), data_dir=tmp_path)
        assert made.returncode == 0, made.stderr
        client = json.loads("{" + text.partition("{")[2].rpartition("}")[0] + "}")["mcpServers"]["simple-tools-server"]
        assert f"MCP endpoint  {client['url']}\n" in text
        headers = {name: value.replace("KEY", made.stdout.strip()) for name, value in client["headers"].items()}
        headers = {"Accept": "text/event-stream", **headers}
        with urllib.request.urlopen(urllib.request.Request(client["url"], headers=headers), timeout=10) as response:
            assert response.readline().strip() == b"event: endpoint"
        del headers["Authorization"]
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(urllib.request.Request(client["url"], headers=headers), timeout=10)
        refused.value.close()


def test_serve_takes_host_and_port_from_its_arguments(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        taken = str(occupant.getsockname()[1])
        port = free_port()
        with running(
            [sys.executable, "manage.py", "serve", "--prepare", "--host", "127.0.0.1", "--port", str(port)],
            env=environment(tmp_path, GUMCP_PORT=taken),
            log=tmp_path / "log",
            is_ready=lambda: is_listening(port),
        ):
            pass


# -- The metrics port ------------------------------------------------------------------------------------------------


def test_no_command_opens_the_metrics_port(tmp_path: Path) -> None:
    port = free_port()
    code = (
        "import socket; from gateway.apps import GatewayConfig; s = socket.socket();"
        f"print('listening' if s.connect_ex(('127.0.0.1', {port})) == 0 else 'quiet')"
    )
    done = manage("shell", "--no-imports", "-c", code, data_dir=tmp_path, GUMCP_METRICS_PORT=str(port))
    assert done.stdout.strip() == "quiet"
    # A command fails if it needs a port that is taken; none of these does.
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        taken = str(occupant.getsockname()[1])
        for command in (("list_servers",), ("check",), ("migrate", "--check")):
            done = manage(*command, data_dir=tmp_path, GUMCP_METRICS_PORT=taken)
            assert "metrics" not in done.stderr.lower()


def test_host_whose_metrics_port_is_taken_serves_all_the_same(start_host: StartHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        taken = str(occupant.getsockname()[1])
        with start_host(metrics=False, GUMCP_METRICS_PORT=taken) as host:
            assert host.request("GET", "/health_check").status == 200
            assert f"cannot listen on 127.0.0.1:{taken}" in host.log()
