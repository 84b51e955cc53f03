"""Modules of every style: the examples in `tests/servers/styles`, and modules made on the spot."""

import asyncio
import os
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
from mcp.client import Client
from mcp.server import MCPServer, Server
from mcp.types import TextContent

from gateway.catalog.server_modules import ServerModules
from gateway.catalog.styles import Style, describe

STYLES: Final = Path(__file__).parents[1] / "servers" / "styles"
WAIT_SECONDS: Final = 10


def load(name: str) -> ModuleType:
    """Execute an example as the host does, version 1's names included."""
    if name.startswith("fastmcp"):
        # Else it gives the SDK's models, those of other tests too, properties that warn when they are read.
        os.environ.setdefault("FASTMCP_MCP_CAMELCASE_COMPAT", "false")
        pytest.importorskip("fastmcp")
    return ServerModules.of_project(STYLES).of_server(STYLES / name).execute(STYLES / name / "main.py")


def module_with(server: Any, **attributes: Any) -> ModuleType:
    module = ModuleType("main")
    module.__dict__.update(attributes, server=server)
    return module


def style_of(server: Any, **attributes: Any) -> Style:
    # Like a module that imports MCPServer: its factories may do without get_initialization_options.
    return describe(module_with(server, **{"MCPServer": MCPServer, **attributes}))


async def ask(server: Server[Any], era: str = "2026-07-28") -> str:
    """What `whoami` answers."""
    async with asyncio.timeout(WAIT_SECONDS), Client(server, mode=era) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["whoami"]
        result = await client.call_tool("whoami", {})
    assert not result.is_error, result
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text
