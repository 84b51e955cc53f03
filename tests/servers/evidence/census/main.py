"""census: counts what is alive in the host's process, from inside."""

import asyncio
import gc
import threading
from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext
from mcp.server.models import InitializationOptions


def server(user_id: str, api_key: str | None = None) -> Server[Any]:
    async def list_tools(
        ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[types.Tool(name=name, input_schema={"type": "object"}) for name in ("echo", "count")]
        )

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name == "count":
            gc.collect()
            # Of all loops: asyncio itself counts only those of the loop that asks.
            objects = gc.get_objects()
            tasks = sum(isinstance(found, asyncio.Task) and not found.done() for found in objects)
            text = f"{tasks} {threading.active_count()} {len(objects)}"
        else:
            text = str((params.arguments or {})["text"])
        return types.CallToolResult(content=[types.TextContent(text=text)])

    return Server("census", version="1.0", on_list_tools=list_tools, on_call_tool=call_tool)


def get_initialization_options(instance: Server[Any]) -> InitializationOptions:
    return instance.create_initialization_options()
