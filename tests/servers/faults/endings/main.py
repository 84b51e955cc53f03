"""endings: tools that note in a file what became of them when their host ended."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext
from mcp.server.models import InitializationOptions

notes = Path("/dev/null")


def note(what: str) -> None:
    with notes.open("a") as file:
        file.write(what + "\n")


async def wait(seconds: float) -> None:
    try:
        await asyncio.sleep(seconds)
    finally:
        note("finally")


async def swallow(seconds: float) -> None:
    note("stubborn")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            await asyncio.sleep(until - time.monotonic())
        except asyncio.CancelledError:
            note("swallowed")


async def block(seconds: float) -> None:
    note("blocking")
    time.sleep(seconds)


async def backtrack(seconds: float) -> None:
    """Hold the GIL for hours: this regular expression tries every way to split the letters."""
    note("backtracking")
    re.match(r"(a+)+$", "a" * 60 + "b")


def server(user_id: str, api_key: str | None = None) -> Server[Any]:
    async def list_tools(
        ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        names = ("wait", "swallow", "block", "backtrack")
        return types.ListToolsResult(tools=[types.Tool(name=name, input_schema={"type": "object"}) for name in names])

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        global notes
        arguments = params.arguments or {}
        notes = Path(arguments["notes"])
        tools = {"wait": wait, "swallow": swallow, "block": block, "backtrack": backtrack}
        await tools[params.name](arguments["seconds"])
        return types.CallToolResult(content=[types.TextContent(text="done")])

    @asynccontextmanager
    async def lifespan(server: Server[Any]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            note("lifespan")

    return Server("endings", version="1.0", on_list_tools=list_tools, on_call_tool=call_tool, lifespan=lifespan)


def get_initialization_options(instance: Server[Any]) -> InitializationOptions:
    return instance.create_initialization_options()
