"""workshop: every way in which a tool can behave, one tool each."""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext
from mcp.server.models import InitializationOptions

Tool = Callable[[ServerRequestContext[Any], dict[str, Any]], Awaitable[str]]

instances_made = itertools.count(1)
cancelled: list[str] = []
lifespans: list[str] = []


def server(user_id: str, api_key: str | None = None) -> Server[Any]:
    number = next(instances_made)
    kept: dict[str, str] = {}

    async def echo(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        return str(arguments["text"])

    async def keep(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        kept[arguments["key"]] = arguments["value"]
        return "kept"

    async def kept_value(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        return kept.get(arguments["key"], "nothing")

    async def whoami(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        return f"{user_id} {number} {threading.current_thread().name}"

    async def compare_key(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        return str(api_key == arguments["key"])

    async def request_says(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        assert ctx.request is not None
        return str(arguments["text"] in f"{ctx.request.url} {ctx.request.headers}")

    async def wait(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        try:
            await asyncio.sleep(arguments["seconds"])
        except asyncio.CancelledError:
            cancelled.append(arguments.get("name", ""))
            raise
        return "waited"

    async def was_cancelled(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        return str(arguments["name"] in cancelled)

    async def open_lifespans(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        return str(len(lifespans))

    async def block(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        time.sleep(arguments["seconds"])
        return "blocked"

    async def progress(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        for step in range(arguments["steps"]):
            await ctx.session.report_progress(step + 1, arguments["steps"])
        return "done"

    async def leave(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        raise SystemExit(3)

    async def fail(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        raise RuntimeError("the tool failed")

    async def leak_key(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        logging.getLogger("workshop").warning("called by %s with the key %s", user_id, api_key)
        raise RuntimeError(f"refused for the key {api_key}")

    async def fill(ctx: ServerRequestContext[Any], arguments: dict[str, Any]) -> str:
        for step in range(arguments.get("steps", 0)):
            await ctx.session.report_progress(step + 1, arguments["steps"])
        return "x" * int(arguments["characters"])

    functions = (
        *(echo, keep, kept_value, whoami, compare_key, request_says, wait, was_cancelled, open_lifespans),
        *(block, progress, leave, fail, leak_key, fill),
    )
    tools: dict[str, Tool] = {function.__name__: function for function in functions}

    async def list_tools(
        ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name=name, input_schema={"type": "object"}) for name in tools])

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name not in tools:
            return types.CallToolResult(content=[types.TextContent(text="unknown tool")], is_error=True)
        text = await tools[params.name](ctx, params.arguments or {})
        return types.CallToolResult(content=[types.TextContent(text=text)])

    @asynccontextmanager
    async def lifespan(server: Server[Any]):
        lifespans.append(user_id)
        try:
            yield {}
        finally:
            lifespans.remove(user_id)

    return Server("workshop", version="7.1", on_list_tools=list_tools, on_call_tool=call_tool, lifespan=lifespan)


def get_initialization_options(instance: Server[Any]) -> InitializationOptions:
    return instance.create_initialization_options()
