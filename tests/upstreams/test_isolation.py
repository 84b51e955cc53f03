"""Python folders in processes of their own, and what their crashes cost others."""

import asyncio
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from gateway.catalog.definitions import LoadFailure, ServerDefinition
from gateway.catalog.factories import make
from gateway.catalog.loading import Project
from gateway.upstreams.isolation import READY, environment_of

pytestmark = pytest.mark.usefixtures("processes")

CODE = """
    import ctypes, os
    from mcp import types
    from mcp.server import Server

    def server(user_id, api_key=None):
        async def list_tools(ctx, params):
            return types.ListToolsResult(tools=[types.Tool(name="do", input_schema={"type": "object"})])

        async def call_tool(ctx, params):
            print("this is not the protocol")
            what = (params.arguments or {}).get("what")
            if what == "segfault":
                ctypes.string_at(0)
            if what == "exit":
                os._exit(1)
            text = f"{user_id} {api_key} {os.getpid()}"
            return types.CallToolResult(content=[types.TextContent(type="text", text=text)])

        return Server("isolated", version="1", on_list_tools=list_tools, on_call_tool=call_tool)

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""


def write_folder(directory: Path, code: str = CODE, **options: Any) -> Path:
    folder = directory / "isolated"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text(textwrap.dedent(code))
    (folder / "server.json").write_text(json.dumps({"gumcp": {"isolation": "process", **options}}))
    return folder


async def test_folder_has_the_variables_of_its_manifest_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEATHER_KEY", "w3ather")
    monkeypatch.setenv("OTHERS_KEY", "0thers")
    folder = write_folder(tmp_path)
    manifest = {"gumcp": {"isolation": "process"}, "env": {"WEATHER_KEY": "${env:WEATHER_KEY}", "PLACE": "Oslo"}}
    (folder / "server.json").write_text(json.dumps(manifest))
    server, _ = await make(load(folder).style, "ada", None)
    async with asyncio.timeout(30), Client(server) as client:
        _, _, pid = (await call(client)).split()
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert {b"WEATHER_KEY=w3ather", b"PLACE=Oslo"} <= set(environment)
    assert b"OTHERS_KEY=0thers" not in environment


def load(folder: Path) -> ServerDefinition:
    outcome = Project(folder.parent).load(folder, {})
    assert isinstance(outcome, ServerDefinition), outcome
    return outcome


async def call(client: Client, **arguments: Any) -> str:
    result = await client.call_tool("do", arguments)
    assert isinstance(result.content[0], types.TextContent)
    return result.content[0].text


async def test_folder_is_served_from_another_process_with_its_callers_name_and_key(tmp_path: Path) -> None:
    server, _ = await make(load(write_folder(tmp_path)).style, "ada", "s3cret")
    async with asyncio.timeout(30), Client(server) as client:
        user_id, key, pid = (await call(client)).split()
        assert (user_id, key) == ("ada", "s3cret")
        # The key reached it by a descriptor: neither its command line nor its environment shows it.
        for name in ("cmdline", "environ"):
            assert b"s3cret" not in Path(f"/proc/{pid}/{name}").read_bytes()


@pytest.mark.parametrize("what", ["segfault", "exit"])
async def test_crash_of_the_interpreter_costs_one_call(tmp_path: Path, what: str) -> None:
    server, _ = await make(load(write_folder(tmp_path)).style, "ada", None)
    async with asyncio.timeout(30), Client(server) as client:
        with pytest.raises(MCPError, match="ended during this request"):
            await call(client, what=what)
        assert (await call(client)).startswith("ada")


async def test_folder_that_does_not_load_says_so_to_its_caller(tmp_path: Path) -> None:
    definition = load(write_folder(tmp_path, "import no_such_module"))
    with pytest.raises(Exception, match="ended before it answered"):
        await make(definition.style, "ada", None)


async def test_folder_with_requirements_uses_its_own_interpreter(tmp_path: Path, settings: Any) -> None:
    settings.GUMCP_DATA_DIR = tmp_path / "data"
    folder = write_folder(tmp_path / "servers")
    (folder / "requirements.txt").write_text("mcp\n")
    refused = Project(folder.parent).load(folder, {})
    assert isinstance(refused, LoadFailure)
    assert "manage.py prepare_servers isolated" in refused.reason
    # An environment as `prepare_servers` makes it, with this interpreter's own packages in it.
    environment = environment_of(folder, tmp_path / "data" / "environments")
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (environment / READY).touch()
    server, _ = await make(load(folder).style, "ada", "key")
    async with asyncio.timeout(30), Client(server, mode="legacy") as client:
        assert (await call(client)).startswith("ada key")
