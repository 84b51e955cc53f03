"""`manage.py call`: the tool's answer on standard output and nothing else, errors on standard error."""

import io
import json
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import override_settings

from tests.support.processes import ROOT, manage
from tests.support.server_folders import WriteServer

KIOSK = """
    import ctypes
    import logging
    import os
    from typing import Annotated

    from mcp import types
    from mcp.server import MCPServer
    from mcp.server.mcpserver import Context, Elicit, ElicitationResult, ListRoots, Resolve, Sample
    from mcp.server.mcpserver.exceptions import ToolError
    from pydantic import BaseModel

    print("printed at import")

    class Name(BaseModel):
        name: str

    def who() -> Elicit[Name]:
        return Elicit("Who are you?", Name)

    def text(name: Annotated[Name, Resolve(who)]) -> Sample:
        content = types.TextContent(text=f"Write about {name.name}")
        return Sample([types.SamplingMessage(role="user", content=content)], max_tokens=10)

    def roots(text: Annotated[types.CreateMessageResult, Resolve(text)]) -> ListRoots:
        return ListRoots()

    def interview(
        name: Annotated[Name, Resolve(who)],
        text: Annotated[types.CreateMessageResult, Resolve(text)],
        roots: Annotated[types.ListRootsResult, Resolve(roots)],
    ) -> str:
        return f"{name.name}: {text.content.text} in {roots.roots[0].uri}"

    def register(name: Annotated[ElicitationResult[Name], Resolve(who)]) -> str:
        return f"{name.action}: {name.data.name if name.action == 'accept' else 'nobody'}"

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

        @instance.tool(structured_output=False)
        def crash() -> str:
            logging.getLogger("kiosk").info("about to crash with %s", api_key)
            raise KeyError(f"no {api_key}")

        @instance.tool(structured_output=False)
        async def count(ctx: Context) -> str:
            await ctx.report_progress(1, 2, "half")
            await ctx.report_progress(2, 2)
            return "counted"

        instance.tool(structured_output=False)(interview)
        instance.tool(structured_output=False)(register)

        @instance.tool(structured_output=False)
        async def ask_anew(ctx: Context) -> str | types.InputRequiredResult:
            if ctx.input_responses:
                return ctx.input_responses["q"].content["name"]
            schema = {"type": "object", "properties": {"name": {"type": "string"}}}
            form = types.ElicitRequestFormParams(message="Name?", requested_schema=schema)
            return types.InputRequiredResult(input_requests={"q": types.ElicitRequest(params=form)})

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


both_protocols = pytest.mark.parametrize("protocol", ["2025-11-25", "2026-07-28"])

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def kiosk(write_server: WriteServer) -> Path:
    return write_server("kiosk", KIOSK + OPTIONS)


@pytest.fixture
def call(kiosk: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run the command in this process, on the kiosk and the servers written so far."""

    def run(*arguments: str, api_key: str = "") -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        status = 0
        error = ""
        with override_settings(GUMCP_API_KEY=api_key, GUMCP_SERVER_DIRS=[kiosk]):
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
        (("kiosk", "sing"), "kiosk has no tool sing. Tools: whoami, greet, numbers, picture, nothing, refuse, crash"),
        (("kiosk", "great"), "kiosk has no tool great. Did you mean greet? Tools: "),
        (("tent", "whoami"), "There is no server called tent. Servers: kiosk."),
        (("kioks", "whoami"), "There is no server called kioks. Did you mean kiosk? Servers: kiosk."),
        (("kiosk", "greet", "{name: Ada}"), "The arguments are not JSON: Expecting property name"),
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
    assert "Error executing tool refuse: not today" in done.stderr.splitlines()
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


def test_server_that_did_not_load_is_told_with_its_reason_and_line(call: Call, write_server: WriteServer) -> None:
    folder = write_server("broken", "import json\n\nraise ValueError('half written')") / "broken"
    done = call("broken", "anything")
    assert done.returncode == 1
    assert "broken did not load. In main.py, line 3: ValueError: half written" in done.stderr
    assert f'File "{folder / "main.py"}", line 3, in <module>' in done.stderr
    assert "importlib" not in done.stderr


def test_only_the_named_server_is_loaded(call: Call, write_server: WriteServer) -> None:
    write_server("bystander", "print('bystander was loaded')")
    done = call("kiosk", "nothing")
    assert "printed at import" in done.stderr
    assert "bystander was loaded" not in done.stderr
    assert "Loaded server" not in done.stderr


def test_failing_tool_shows_the_authors_frames_and_folds_the_others(call: Call) -> None:
    done = call("kiosk", "crash", api_key="canary-key")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert "KeyError: 'no [redacted]'" in lines
    assert sum("kiosk/main.py" in line for line in lines) == 1
    assert "raise KeyError" in done.stderr
    assert "site-packages" not in done.stderr
    assert "canary-key" not in done.stderr
    whole = call("kiosk", "crash", "--traceback", api_key="canary-key").stderr
    assert "site-packages" in whole
    assert "canary-key" not in whole


def test_what_the_server_logs_is_shown_once_without_the_key(call: Call) -> None:
    done = call("kiosk", "crash", api_key="canary-key")
    assert done.stderr.count("about to crash with [redacted]") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["name=Zoë", "times=2"], "Hello, Zoë\nHello, Zoë\n"),
        (["times=1", "name=12"], "Hello, 12\n"),
        (['name:="Ada"'], "Hello, Ada\n"),
        (["--user-id", "me", "name=a=b"], "Hello, a=b\n"),
    ],
)
def test_arguments_may_be_written_as_pairs(call: Call, words: list[str], expected: str) -> None:
    assert call("kiosk", "greet", *words).stdout == expected


@both_protocols
@pytest.mark.parametrize(
    ("tool", "answers", "expected"),
    [
        ("interview", ["Ada", "a poem", "/srv/ada"], "Ada: a poem in file:///srv/ada\n"),
        ("interview", ['{"name": "Zoë"}', "x=y", "file:///tmp"], "Zoë: x=y in file:///tmp\n"),
        ("register", ["name=Ada Lovelace"], "accept: Ada Lovelace\n"),
        ("register", ["decline"], "decline: nobody\n"),
        ("register", ["cancel"], "cancel: nobody\n"),
    ],
)
def test_questions_of_a_tool_are_answered_by_options(
    call: Call, protocol: str, tool: str, answers: list[str], expected: str
) -> None:
    options = [part for answer in answers for part in ("--answer", answer)]
    done = call("kiosk", tool, *options, "--protocol", protocol)
    assert done.stdout == expected, done.stderr


@both_protocols
def test_question_without_an_answer_fails_and_is_shown(
    call: Call, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    done = call("kiosk", "interview", "--protocol", protocol)
    assert (done.returncode, done.stdout) == (1, "")
    assert "The tool asked: Who are you? (name: string, required)" in done.stderr
    assert "--answer" in done.stderr


def test_questions_are_answered_on_the_terminal(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO("Ada\na poem\n/srv\n")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", terminal)
    done = call("kiosk", "interview")
    assert done.stdout == "Ada: a poem in file:///srv\n"
    assert "Who are you? (name: string, required)\nAnswer" in done.stderr
    assert "user: Write about Ada" in done.stderr


def test_progress_is_shown_on_standard_error(call: Call) -> None:
    done = call("kiosk", "count")
    assert done.stdout == "counted\n"
    assert "progress 1/2  half\nprogress 2/2\n" in done.stderr


def test_tool_that_asks_as_of_2026_gets_a_hint_and_works_with_its_protocol(call: Call) -> None:
    done = call("kiosk", "ask_anew", "--answer", "Ada")
    assert done.returncode == 1
    assert "add --protocol 2026-07-28" in done.stderr
    assert call("kiosk", "ask_anew", "--answer", "Ada", "--protocol", "2026-07-28").stdout == "Ada\n"


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
