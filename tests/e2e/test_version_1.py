"""Unchanged version 1 modules on a real host: what they answer over each transport is what mcp 1.28 answers."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from mcp import Client
from mcp.client.sse import sse_client

from gateway.catalog.discovery import discover
from gateway.catalog.server_finder import ServerModuleFinder
from tests.compat.conversations import CONVERSATIONS
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import ROOT, environment, until
from tests.support.projects import SERVERS
from tests.support.server_folders import WriteServer
from tests.support.streamable import StatelessClient
from tests.support.version_1 import CLIENT_OPTIONS, perform, visible, wanted_here

pytestmark = pytest.mark.timeout(600)

HOST_OPTIONS = {"server_dirs": SERVERS}

ERAS: Final = {"sse": "legacy", "streamable-http": "legacy", "stateless": "auto"}
"""Transports, and how the official client is told to use them."""


def client(host: HostProcess, transport: str, url: str, message_handler: Any) -> Client:
    mode = ERAS[transport]
    server: Any = sse_client(url) if transport == "sse" else url
    return Client(server, mode=mode, message_handler=message_handler, **CLIENT_OPTIONS)


@pytest.mark.parametrize(
    ("number", "transport"),
    [
        pytest.param(number, transport, id=f"{number}-{conversation.server}-{transport}")
        for number, conversation in enumerate(CONVERSATIONS)
        for transport, mode in ERAS.items()
        if mode == "legacy" or any(step.in_2026 for step in conversation.steps)
    ],
)
async def test_answers_over_the_network_equal_those_of_version_1(
    host: HostProcess,
    number: int,
    transport: str,
    answers_of_version_1: list[list[Any]],
) -> None:
    conversation = CONVERSATIONS[number]
    received: list[Any] = []
    arrived = asyncio.Event()

    async def remember(message: Any) -> None:
        received.append(message.model_dump(by_alias=True, mode="json", exclude_none=True))
        arrived.set()

    # A key of its own: what one conversation leaves on its instance, another one must not find.
    era = "2026-07-28" if transport == "stateless" else "legacy"
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        clients: dict[str, Client] = {}
        for user_id in conversation.users:
            url = host.url(conversation.server, f"{user_id}:key-{number}-{transport}")
            clients[user_id] = await stack.enter_async_context(client(host, transport, url, remember))
            assert (clients[user_id].session.protocol_version == "2026-07-28") is (transport == "stateless")
        for step, answer in zip(conversation.steps, answers_of_version_1[number], strict=True):
            if era != "legacy" and not step.in_2026:
                continue
            outcome = await perform(clients, conversation, step, received)
            async with asyncio.timeout(10):
                while step.is_eventual and outcome["result"] != answer["result"]:
                    outcome = await perform(clients, conversation, step, received)
                # Notifications may come on another stream than the answer, and after it.
                while len(visible(outcome, era)["notifications"]) < len(visible(answer, era)["notifications"]):
                    arrived.clear()
                    await arrived.wait()
            mine, wanted = visible(outcome, era), wanted_here(step, answer, era)
            if transport == "streamable-http":
                mine, wanted = unordered(mine), unordered(wanted)
            assert mine == wanted, f"{conversation.server}: {step.method} {step.params}"


def unordered(outcome: dict[str, Any]) -> dict[str, Any]:
    """Two streams bring what one brought on version 1: what belongs to a call, and what belongs to none."""
    return outcome | {"notifications": sorted(outcome["notifications"], key=json.dumps)}


def test_every_fixture_of_version_1_is_served_and_logging_stays_the_hosts(host: HostProcess) -> None:
    names = sorted({conversation.server for conversation in CONVERSATIONS})
    assert sorted(host.request("GET", "/health_check").json["servers"]) == names
    # One of them calls logging.basicConfig(level=WARNING) with a format of its own: this line is INFO, and later.
    (line,) = [line for line in host.log().splitlines() if f"Discovered {len(names)} servers" in line]
    assert " - INFO - " not in line


def test_loading_version_1_modules_leaves_the_process_as_it_was() -> None:
    path, handlers, level = list(sys.path), list(logging.root.handlers), logging.root.level
    stdout, finders = sys.stdout, list(sys.meta_path)
    found = discover([SERVERS])
    assert not found.failures
    assert len(found.definitions) == len({conversation.server for conversation in CONVERSATIONS})
    assert sys.path == path
    assert (logging.root.handlers, logging.root.level) == (handlers, level)
    assert sys.stdout is stdout
    assert [finder for finder in sys.meta_path if not isinstance(finder, ServerModuleFinder)] == [
        finder for finder in finders if not isinstance(finder, ServerModuleFinder)
    ]


# -- A project of somebody else's ------------------------------------------------------------------------------------

MAIN = """
    import os
    import sys
    {prelude}
    from mcp.server import NotificationOptions, Server
    from mcp.server.models import InitializationOptions
    from mcp.types import TextContent, Tool

    def create_server(user_id, api_key=None):
        server = Server("theirs")

        @server.list_tools()
        async def list_tools():
            return [Tool(name="ask", inputSchema={{"type": "object"}})]

        @server.call_tool()
        async def call_tool(name, arguments):
            {handler}
            return [TextContent(type="text", text=str(answer))]

        return server

    server = create_server

    def get_initialization_options(instance):
        return InitializationOptions(
            server_name="theirs",
            server_version="1",
            capabilities=instance.get_capabilities(NotificationOptions(), {{}}),
        )
"""

INSERT_SRC = 'sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "..", "src"))'


@pytest.fixture(scope="module")
def their_host(start_host: StartHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    root = tmp_path_factory.mktemp("their-project")
    files = {
        "vault/__init__.py": "",
        "vault/factory.py": """
            from mcp.shared.exceptions import McpError
            from mcp.types import ErrorData

            def credentials(user_id):
                return f"vault token of {user_id}"
        """,
        "src/plainauth/__init__.py": "def credentials(user_id):\n    return f'plain token of {user_id}'\n",
        "src/servers/lazy-root/main.py": MAIN.format(
            prelude="",
            handler="from vault.factory import credentials; answer = credentials(user_id)",
        ),
        "src/servers/lazy-inserted/main.py": MAIN.format(
            prelude=INSERT_SRC,
            handler="from plainauth import credentials; answer = credentials(user_id)",
        ),
        "src/servers/lazy-helper/main.py": MAIN.format(
            prelude="sys.path.append(os.path.dirname(__file__))",
            handler="import lazy_helper_of_theirs; answer = lazy_helper_of_theirs.TEXT.text",
        ),
        "src/servers/lazy-helper/lazy_helper_of_theirs.py": (
            "from mcp.types import AnyUrl, TextContent\nTEXT = TextContent(type='text', text=str(AnyUrl('a:b')))\n"
        ),
        "src/servers/path/main.py": MAIN.format(
            prelude="sys.path.insert(0, '/somewhere/of/theirs'); sys.path.insert(0, os.path.dirname(__file__))",
            handler="answer = [entry for entry in sys.path if 'their' in entry]",
        ),
        "src/servers/exits/main.py": "import sys\nsys.exit('no credentials')\n",
        "src/servers/speechless/main.py": (
            "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\nraise Odd\n"
        ),
    }
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    with start_host(server_dirs=root / "src" / "servers") as host:
        yield host


@pytest.mark.parametrize(
    ("server", "answer"),
    [
        pytest.param("lazy-root", "vault token of maria", id="a package two levels up"),
        pytest.param("lazy-inserted", "plain token of maria", id="a package in a folder put on sys.path"),
        pytest.param("lazy-helper", "a:b", id="a module beside main.py that uses version 1 names"),
    ],
)
def test_packages_of_their_project_can_be_imported_inside_a_handler(
    their_host: HostProcess, server: str, answer: str
) -> None:
    assert StatelessClient(their_host, server, "maria:key").call("ask") == answer
    with their_host.session(server, "maria:key") as stream:
        assert stream.call("ask") == answer


def test_what_modules_put_on_the_path_is_not_on_it_afterwards(their_host: HostProcess) -> None:
    assert StatelessClient(their_host, "path", "maria:key").call("ask") == "[]"


def test_modules_that_exit_or_raise_what_cannot_be_printed_cost_only_themselves(their_host: HostProcess) -> None:
    served = their_host.request("GET", "/health_check").json["servers"]
    assert sorted(served) == ["lazy-helper", "lazy-inserted", "lazy-root", "path"]
    reasons = {row["name"]: row["reason"] for row in their_host.rows("SELECT name, reason FROM records_serverrecord")}
    assert reasons["exits"] == "In main.py, line 2: SystemExit: no credentials"
    assert reasons["speechless"] == "In main.py, line 4: Odd"


@pytest.mark.usefixtures("processes")
def test_nothing_is_patched_for_everybody(tmp_path: Path) -> None:
    program = (
        "import django; django.setup();"
        "from pathlib import Path; from gateway.catalog.discovery import discover;"
        f"found = discover([Path({str(SERVERS)!r})]); assert not found.failures, found.failures;"
        "import mcp.server, mcp.types, builtins;"
        "assert not hasattr(mcp.server.Server('x'), 'call_tool');"
        "assert not hasattr(mcp.types, 'AnyUrl');"
        "assert builtins.__import__.__module__ == 'builtins';"
        "import mcp.shared.exceptions; assert not hasattr(mcp.shared.exceptions, 'McpError');"
        "print('as it was')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**environment(tmp_path), "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["as it was"], done.stderr


REPEATING_SERVER = """
    from mcp.server import NotificationOptions, Server
    from mcp.server.models import InitializationOptions
    from mcp.types import Tool

    def create_server(user_id, api_key=None):
        server = Server("repeating")

        @server.list_tools()
        async def list_tools():
            return [Tool(name="look_up", inputSchema={"type": "object"})]

        @server.call_tool()
        async def call_tool(name, arguments):
            raise ValueError("nobody is called " + arguments["name"])

        @server.read_resource()
        async def read_resource(uri):
            raise ValueError(f"nothing is at {uri}")

        return server

    server = create_server

    def get_initialization_options(instance):
        capabilities = instance.get_capabilities(NotificationOptions(), {})
        return InitializationOptions(server_name="repeating", server_version="1", capabilities=capabilities)
"""


def test_what_a_tool_was_called_with_is_in_no_log_even_at_debug(
    start_host: StartHost, write_server: WriteServer
) -> None:
    directory = write_server("repeating", REPEATING_SERVER)
    with start_host(server_dirs=directory, GUMCP_LOG_LEVEL="DEBUG") as host:
        with host.session("repeating", "ada:key") as stream:
            answer = stream.request("tools/call", {"name": "look_up", "arguments": {"name": "canary-5b1e"}})
            assert "canary-5b1e" in answer["result"]["content"][0]["text"]
            answer = stream.request("resources/read", {"uri": "note:canary-5b1e"})
            assert "canary-5b1e" in answer["error"]["message"]
        until(lambda: "Closed SSE connection for repeating session: ada" in host.log())
        log = host.log()
    assert "'look_up' failed with ValueError" in log
    assert "ValueError: [its text is left out]" in log
    assert "canary-5b1e" not in log
