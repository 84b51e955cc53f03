"""version_1: tools that block, fail and hang, written for version 1 of the SDK."""

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path

from mcp.server import NotificationOptions, Server
from mcp.server.lowlevel.server import request_ctx
from mcp.server.models import InitializationOptions
from mcp.types import TextContent, Tool

ERRORS = {
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "BaseExceptionGroup": lambda: BaseExceptionGroup("several", [SystemExit(3), ValueError("one")]),
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "a name that is not UTF-8": lambda: FileNotFoundError(f"no file {os.fsdecode(b'caf' + bytes([0xE9]))}"),
    "data that is no JSON": lambda: ValueError("upstream failed", object()),
}

cancelled = []


def recurse(depth):
    return recurse(depth + 1) + 1


async def echo(arguments):
    return arguments["text"]


async def block(arguments):
    time.sleep(arguments["seconds"])
    return "blocked"


async def compute(arguments):
    end = time.thread_time() + arguments["seconds"]
    while time.thread_time() < end:
        sum(range(2000))
    return "computed"


async def block_until_file(arguments):
    while not Path(arguments["path"]).exists():
        time.sleep(0.02)
    return "released"


async def wait(arguments):
    try:
        await asyncio.sleep(arguments["seconds"])
    except asyncio.CancelledError:
        cancelled.append(arguments.get("name"))
        raise
    return "waited"


async def report(arguments):
    context = request_ctx.get()
    for step in range(arguments["steps"]):
        await context.session.send_progress_notification(context.meta.progressToken, step)
        await asyncio.sleep(arguments["seconds"])
    return "reported"


async def ask(arguments):
    context = request_ctx.get()
    await context.session.elicit("Well?", {"type": "object", "properties": {}}, context.request_id)
    return "answered"


async def was_cancelled(arguments):
    return str(arguments["name"] in cancelled)


async def wait_whatever_comes(arguments):
    while not Path(arguments["path"]).exists():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.02)
    return "released"


async def fail(arguments):
    if arguments["error"] == "RecursionError":
        return str(recurse(0))
    if arguments["error"] == "exit":
        sys.exit("the vendor's client gave up")
    raise ERRORS[arguments["error"]]()


async def fail_in_background(arguments):
    async def leave():
        raise SystemExit(4)

    asyncio.create_task(leave()).add_done_callback(lambda task: task.exception())
    await asyncio.sleep(0.1)
    return "went on"


TOOLS = {
    function.__name__: function
    for function in (
        *(echo, block, compute, block_until_file, wait, report, ask, was_cancelled),
        *(wait_whatever_comes, fail, fail_in_background),
    )
}


def create_server(user_id, api_key=None):
    server = Server("version_1")

    @server.list_tools()
    async def list_tools():
        return [Tool(name=name, inputSchema={"type": "object"}) for name in TOOLS]

    @server.call_tool()
    async def call_tool(name, arguments):
        return [TextContent(type="text", text=await TOOLS[name](arguments))]

    @server.read_resource()
    async def read_resource(uri):
        await asyncio.sleep(30)
        return "late"

    return server


server = create_server


def get_initialization_options(server_instance):
    return InitializationOptions(
        server_name="version_1",
        server_version="1.0",
        capabilities=server_instance.get_capabilities(NotificationOptions(), {}),
    )
