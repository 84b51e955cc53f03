"""`manage.py call`: the tool's answer on standard output and nothing else, errors on standard error."""

import json
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import override_settings

from gateway.apps import GatewayConfig
from gateway.catalog.discovery import discover
from gateway.catalog.registry import Registry
from tests.support.processes import ROOT, manage
from tests.support.server_folders import WriteServer

KIOSK = """
    import ctypes
    import os

    from mcp import types
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

    print("printed at import")

    def server(user_id, api_key=None):
        print("printed by the factory")
        instance = MCPServer("kiosk", version="1")

        @instance.tool(structured_output=False)
        def whoami() -> str:
            print("printed by the tool")
            os.write(1, b"written by the tool\\n")
            os.system("echo echoed by a child")
            return f"{user_id} with {api_key}"

        @instance.tool(structured_output=False)
        def greet(name: str, times: int = 1) -> list[str]:
            return [f"Hello, {name}"] * times

        @instance.tool()
        def numbers() -> types.CallToolResult:
            return types.CallToolResult(content=[], structured_content={"größe": 3})

        @instance.tool(structured_output=False)
        def picture() -> types.ImageContent:
            return types.ImageContent(data="AAAA", mime_type="image/png")

        @instance.tool()
        def nothing() -> types.CallToolResult:
            return types.CallToolResult(content=[])

        @instance.tool()
        def refuse() -> str:
            raise ToolError("not today")

        @instance.tool()
        def leak() -> str:
            raise ToolError(f"could not log in with {api_key}")

        return instance
"""

OPTIONS = """
    def get_initialization_options(instance):
        from mcp.server.models import InitializationOptions
        from mcp.types import ServerCapabilities
        return InitializationOptions(server_name="x", server_version="1", capabilities=ServerCapabilities())
"""

VERSION_1 = """
    from mcp.server import Server
    from mcp.types import TextContent, Tool

    def create_server(user_id, api_key=None):
        server = Server("old-server")
        server.user_id = user_id

        @server.list_tools()
        async def handle_list_tools():
            return [Tool(name="old", description="", inputSchema={"type": "object"})]

        @server.call_tool()
        async def handle_call_tool(name, arguments):
            if arguments.get("fail"):
                raise ValueError("no such thing")
            return [TextContent(type="text", text=f"{name} for {server.user_id}")]

        return server

    server = create_server

    def get_initialization_options(server_instance):
        from mcp.server.models import InitializationOptions
        from mcp.server import NotificationOptions
        return InitializationOptions(
            server_name="old-server", server_version="1.0",
            capabilities=server_instance.get_capabilities(NotificationOptions(), {}),
        )
"""


Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def kiosk(write_server: WriteServer) -> Path:
    return write_server("kiosk", KIOSK + OPTIONS)


@pytest.fixture
def call(kiosk: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the command in this process, on the kiosk and the servers written so far."""

    def run(*arguments: str, api_key: str = "") -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(GatewayConfig.current(), "registry", Registry(discover([kiosk])))
        capfd.readouterr()
        status = 0
        error = ""
        with override_settings(GUMCP_API_KEY=api_key):
            try:
                call_command("call", *arguments)
            except CommandError as refused:
                status, error = refused.returncode, str(refused)
            except SystemExit as end:
                status = int(str(end.code))
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, status, out, err + error)

    return run


@pytest.fixture
def call_in_shell(kiosk: Path, tmp_path: Path, processes: None) -> Call:
    """Run the command as a process of its own."""

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        chosen = {"GUMCP_SERVER_DIRS": str(kiosk), "GUMCP_LOG_LEVEL": "WARNING", **settings}
        return manage("call", *arguments, data_dir=tmp_path, **chosen)

    return run


def test_text_is_all_that_standard_output_gets_whatever_the_server_prints(call_in_shell: Call) -> None:
    done = call_in_shell("kiosk", "whoami")
    assert (done.returncode, done.stdout) == (0, "local with None\n")
    for noise in ("printed at import", "printed by the factory", "printed by the tool", "written by", "echoed by"):
        assert noise in done.stderr


@pytest.mark.usefixtures("processes")
def test_user_and_key_reach_the_factory(call: Call) -> None:
    done = call("kiosk", "whoami", "--user-id", "alice", api_key="secret:key")
    assert done.stdout == "alice with secret:key\n"


def test_arguments_reach_the_tool_and_every_text_is_printed(call: Call) -> None:
    done = call("kiosk", "greet", '{"name": "Zoë", "times": 2}')
    assert done.stdout == "Hello, Zoë\nHello, Zoë\n"


def test_structured_content_is_printed_where_there_is_no_text(call: Call) -> None:
    done = call("kiosk", "numbers")
    assert json.loads(done.stdout) == {"größe": 3}
    assert "größe" in done.stdout


def test_content_that_is_no_text_is_printed_as_json(call: Call) -> None:
    assert json.loads(call("kiosk", "picture").stdout) == {"type": "image", "data": "AAAA", "mimeType": "image/png"}


def test_empty_answer_is_a_success(call: Call) -> None:
    done = call("kiosk", "nothing")
    assert (done.returncode, done.stdout.strip()) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("kiosk", "refuse"), "not today"),
        (("kiosk", "greet", "{}"), "name"),
        (("kiosk", "sing"), "kiosk has no tool sing. Tools: whoami, greet, numbers, picture, nothing, refuse, leak."),
        (("tent", "whoami"), "No server of this name is served here. Servers: kiosk."),
        (("kiosk", "greet", "{name: Ada}"), "The arguments are no JSON: Expecting property name"),
        (("kiosk", "greet", '["Ada"]'), "The arguments must be a JSON object"),
        (("kiosk", "greet", "null"), "The arguments must be a JSON object"),
        (("kiosk", "whoami", "--user-id", "../alice"), "The user id must not contain"),
    ],
)
def test_error_is_told_on_standard_error_with_status_1(call: Call, arguments: tuple[str, ...], said: str) -> None:
    done = call(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_error_in_a_shell_is_the_text_alone(call_in_shell: Call) -> None:
    done = call_in_shell("kiosk", "refuse")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "Error executing tool refuse: not today"
    done = call_in_shell("kiosk", "sing")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("CommandError: kiosk has no tool sing. Tools: whoami, ")


def test_key_comes_from_the_environment(call_in_shell: Call) -> None:
    assert call_in_shell("kiosk", "whoami", GUMCP_API_KEY="secret").stdout == "local with secret\n"


def test_key_is_not_in_the_error_text(call: Call) -> None:
    done = call("kiosk", "leak", api_key="canary-key")
    assert done.returncode == 1
    assert "could not log in with" in done.stderr
    assert "canary-key" not in done.stderr


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def server(user_id, api_key): raise ValueError('no account')", "ValueError: no account"),
        ("def server(user_id, api_key): raise SystemExit(0)", "SystemExit: 0"),
        ("def server(user_id, api_key): return 1", "TypeError: The factory returned int"),
        (
            "from contextlib import asynccontextmanager\nfrom mcp.server import Server\n"
            "@asynccontextmanager\nasync def lifespan(app):\n    raise ValueError('no database')\n    yield\n"
            "def server(user_id, api_key): return Server('x', version='1', lifespan=lifespan)",
            "ValueError: no database",
        ),
    ],
)
def test_server_that_gives_no_instance_is_told_with_its_own_error(
    call: Call, write_server: WriteServer, source: str, said: str
) -> None:
    servers = write_server("broken", "pass")
    options = "\n\ndef get_initialization_options(instance): return instance.create_initialization_options()\n"
    (servers / "broken" / "main.py").write_text(source + options)
    done = call("broken", "anything")
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_traceback_of_the_servers_error_is_shown_on_request(call_in_shell: Call, write_server: WriteServer) -> None:
    write_server("broken", "def server(user_id): raise ValueError('no account')\n" + textwrap.dedent(OPTIONS))
    done = call_in_shell("broken", "anything", "--traceback")
    assert done.returncode == 1
    assert "def server(user_id): raise ValueError('no account')" in done.stderr


def test_server_that_did_not_load_is_told_with_its_reason(call: Call, write_server: WriteServer) -> None:
    write_server("broken", "raise ValueError('half written')")
    done = call("broken", "anything")
    assert done.returncode == 1
    assert "ValueError" in done.stderr.splitlines()[-1]
    assert "half written" in done.stderr.splitlines()[-1]


def test_version_1_server_is_called_like_any_other(call: Call, write_server: WriteServer) -> None:
    write_server("old-server", VERSION_1)
    assert call("old-server", "old", "--user-id", "alice").stdout == "old for alice\n"
    failed = call("old-server", "old", '{"fail": true}')
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "no such thing" in failed.stderr


@pytest.mark.usefixtures("processes")
def test_bundled_server_is_called_without_any_database(tmp_path: Path) -> None:
    done = manage(
        "call",
        "time",
        "get_current_time",
        '{"timezone": "Asia/Kolkata"}',
        data_dir=tmp_path,
        GUMCP_SERVER_DIRS=str(ROOT / "servers"),
        DATABASE_URL="sqlite:////no/such/db",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("+05:30 Asia/Kolkata")


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("tool", "status", "answer"), [("whoami", 0, "local with None"), ("refuse", 1, "not today")])
def test_call_ends_although_the_server_has_left_a_thread_behind(
    tmp_path: Path, write_server: WriteServer, tool: str, status: int, answer: str
) -> None:
    staying = "    import threading\n    threading.Thread(target=threading.Event().wait).start()\n"
    directory = write_server("kiosk", staying + KIOSK.lstrip("\n") + OPTIONS)
    done = manage("call", "kiosk", tool, data_dir=tmp_path, GUMCP_SERVER_DIRS=str(directory))
    assert done.returncode == status, done.stderr
    assert answer in (done.stderr if status else done.stdout)
