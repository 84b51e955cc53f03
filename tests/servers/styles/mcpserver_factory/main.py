"""A factory that makes an `MCPServer` for each user. It knows its name and version, so there are no options."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server import MCPServer
from mcp.server.mcpserver import Context


@asynccontextmanager
async def open_notebook(app: MCPServer[list[str]]) -> AsyncIterator[list[str]]:
    yield []


def server(user_id: str, api_key: str | None = None) -> MCPServer[list[str]]:
    instance = MCPServer("mcpserver_factory", version="1.0", lifespan=open_notebook)

    @instance.tool()
    def whoami(ctx: Context[list[str]]) -> str:
        notebook = ctx.request_context.lifespan_context
        notebook.append(user_id)
        return " ".join(notebook)

    return instance
