"""An async factory, and async options: both may wait for something before they answer."""

import asyncio

from mcp.server import MCPServer
from mcp.server.models import InitializationOptions
from mcp.types import ServerCapabilities, ToolsCapability


async def server(user_id: str, api_key: str | None = None) -> MCPServer:
    await asyncio.sleep(0)
    instance = MCPServer("async_factory")

    @instance.tool()
    def whoami() -> str:
        return f"{user_id} with {api_key}"

    return instance


async def get_initialization_options() -> InitializationOptions:
    await asyncio.sleep(0)
    return InitializationOptions(
        server_name="async_factory",
        server_version="1.0",
        capabilities=ServerCapabilities(tools=ToolsCapability()),
    )
