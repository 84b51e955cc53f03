"""A folder whose tools harm the process that runs them."""

import ctypes
import os
from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext

kept: list[bytes] = []


def server(user_id: str, api_key: str | None = None) -> Server[Any]:
    async def list_tools(ctx: ServerRequestContext[Any], params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name="harm", input_schema={"type": "object"})])

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        how = (params.arguments or {}).get("how")
        if how == "segfault":
            ctypes.string_at(0)
        if how == "exit":
            os._exit(1)
        if how == "hold the GIL":
            ctypes.PyDLL(None).sleep(10)
        if how == "leak":
            kept.extend(b"x" * (1 << 20) for _ in range(1024))
        return types.CallToolResult(content=[types.TextContent(text=str(os.getpid()))])

    return Server("hazard", version="1", on_list_tools=list_tools, on_call_tool=call_tool)


def get_initialization_options(instance: Server[Any]) -> Any:
    return instance.create_initialization_options()
