"""A low-level `Server` object that all users share, set up once for all of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext

lifespans: list[str] = []
"""What happened to the lifespan, in order."""


@asynccontextmanager
async def lifespan(app: Server[str]) -> AsyncIterator[str]:
    lifespans.append("entered")
    try:
        yield f"set up {lifespans.count('entered')} times"
    finally:
        lifespans.append("left")


async def list_tools(
    ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[types.Tool(name="whoami", input_schema={"type": "object"})])


async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=f"one of many, {ctx.lifespan_context}")])


server = Server("server_object", version="1.0", lifespan=lifespan, on_list_tools=list_tools, on_call_tool=call_tool)
