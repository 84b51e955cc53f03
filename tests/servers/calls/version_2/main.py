"""version_2: tools that block, fail and hang, on the SDK's version 2: they run in the server's lane."""

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext
from mcp.server.models import InitializationOptions
from mcp.shared.exceptions import MCPError

ERRORS: dict[str, Any] = {
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "BaseExceptionGroup": lambda: BaseExceptionGroup("several", [SystemExit(3), ValueError("one")]),
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "a name that is not UTF-8": lambda: FileNotFoundError(f"no file {os.fsdecode(b'caf' + bytes([0xE9]))}"),
    "data that is no JSON": lambda: MCPError(-32000, "upstream failed", data=object()),
}

cancelled: list[str] = []


def recurse(depth: int) -> int:
    return recurse(depth + 1) + 1


async def echo(arguments: dict[str, Any]) -> str:
    return str(arguments["text"])


async def block(arguments: dict[str, Any]) -> str:
    time.sleep(arguments["seconds"])
    return "blocked"


async def block_in_a_task(arguments: dict[str, Any]) -> str:
    return await asyncio.create_task(block(arguments))


async def wait(arguments: dict[str, Any]) -> str:
    try:
        await asyncio.sleep(arguments["seconds"])
    except asyncio.CancelledError:
        cancelled.append(arguments.get("name", ""))
        raise
    return "waited"


async def report(arguments: dict[str, Any], ctx: ServerRequestContext[Any]) -> str:
    for step in range(arguments["steps"]):
        await ctx.session.report_progress(step)
        await asyncio.sleep(arguments["seconds"])
    return "reported"


async def ask(arguments: dict[str, Any], ctx: ServerRequestContext[Any]) -> str:
    request_id = None if arguments.get("is_standalone") else ctx.request_id
    await ctx.session.elicit_form("Well?", {"type": "object", "properties": {}}, request_id)
    return "answered"


async def was_cancelled(arguments: dict[str, Any]) -> str:
    return str(arguments["name"] in cancelled)


async def wait_whatever_comes(arguments: dict[str, Any]) -> str:
    while not Path(arguments["path"]).exists():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.02)
    return "released"


async def fail(arguments: dict[str, Any]) -> str:
    if arguments["error"] == "RecursionError":
        return str(recurse(0))
    if arguments["error"] == "exit":
        sys.exit("the vendor's client gave up")
    raise ERRORS[arguments["error"]]()


async def fail_in_background(arguments: dict[str, Any]) -> str:
    async def leave() -> None:
        raise SystemExit(4)

    asyncio.create_task(leave()).add_done_callback(lambda task: task.exception())
    await asyncio.sleep(0.1)
    return "went on"


TOOLS = {
    function.__name__: function
    for function in (
        *(echo, block, block_in_a_task, wait, was_cancelled),
        *(wait_whatever_comes, fail, fail_in_background),
    )
}

TALKING_TOOLS = {"report": report, "ask": ask}
"""Tools that send something to the client while they run."""


def server(user_id: str, api_key: str | None = None) -> Server[Any]:
    if user_id == "slow-factory":
        time.sleep(2.5)

    async def list_tools(
        ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        names = [*TOOLS, *TALKING_TOOLS]
        return types.ListToolsResult(tools=[types.Tool(name=name, input_schema={"type": "object"}) for name in names])

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        arguments = params.arguments or {}
        if params.name in TALKING_TOOLS:
            text = await TALKING_TOOLS[params.name](arguments, ctx)
        else:
            text = await TOOLS[params.name](arguments)
        return types.CallToolResult(content=[types.TextContent(text=text)])

    async def read_resource(
        ctx: ServerRequestContext[Any], params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        await asyncio.sleep(30)
        return types.ReadResourceResult(contents=[])

    return Server(
        "version_2",
        version="1.0",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_read_resource=read_resource,
    )


def get_initialization_options(instance: Server[Any]) -> InitializationOptions:
    return instance.create_initialization_options()
