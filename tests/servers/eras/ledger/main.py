"""ledger: what only shows between protocol eras: listings that are counted, parameters in headers, calls held open."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext
from mcp.server.models import InitializationOptions
from mcp.shared.message import ServerMessageMetadata

Context = ServerRequestContext[Any]
Tool = Callable[[Context, dict[str, Any]], Awaitable[str]]

REGION = {
    "type": "object",
    "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
}


def server(user_id: str, api_key: str | None = None) -> Server[Any]:
    seen: Counter[str] = Counter()
    gates: dict[str, asyncio.Event] = {}

    def gate(name: str) -> asyncio.Event:
        return gates.setdefault(name, asyncio.Event())

    async def tell(ctx: Context, text: str) -> None:
        """Notify on the stream of the call."""
        params = types.LoggingMessageNotificationParams(level="info", data=text)
        await ctx.session.send_notification(
            types.LoggingMessageNotification(params=params), related_request_id=ctx.request_id
        )

    async def count(ctx: Context, arguments: dict[str, Any]) -> str:
        return str(seen[arguments["of"]])

    async def deliver(ctx: Context, arguments: dict[str, Any]) -> str:
        return str(arguments.get("region"))

    async def echo(ctx: Context, arguments: dict[str, Any]) -> str:
        return str(arguments["text"])

    async def announce(ctx: Context, arguments: dict[str, Any]) -> str:
        """Notify on the standalone stream, which is all a client gets that has no call open."""
        for number in range(arguments.get("times", 1)):
            params = types.LoggingMessageNotificationParams(level="info", data=f"{arguments['text']}{number}")
            await ctx.session.send_notification(types.LoggingMessageNotification(params=params))
        return "announced"

    async def chatter(ctx: Context, arguments: dict[str, Any]) -> str:
        """Notify on the call's own stream."""
        for number in range(arguments["times"]):
            await tell(ctx, f"{number}{'x' * arguments.get('characters', 0)}")
        return "said"

    async def hold(ctx: Context, arguments: dict[str, Any]) -> str:
        """Wait for `release`, having said so unless told to be quiet."""
        name = arguments["name"]
        try:
            if not arguments.get("quiet"):
                await tell(ctx, "holding")
            seen[f"held {name}"] += 1
            await gate(name).wait()
            if arguments.get("say"):
                await tell(ctx, arguments["say"])
        except asyncio.CancelledError:
            seen[f"cancelled {name}"] += 1
            raise
        seen[f"released {name}"] += 1
        return f"held {name}"

    async def release(ctx: Context, arguments: dict[str, Any]) -> str:
        gate(arguments["name"]).set()
        return "released"

    async def ask_aside(ctx: Context, arguments: dict[str, Any]) -> str:
        """Ask the client on the standalone stream."""
        roots = await ctx.session.send_request(
            types.ListRootsRequest(), result_type=types.ListRootsResult, metadata=ServerMessageMetadata()
        )
        return ", ".join(str(root.uri) for root in roots.roots)

    functions = (count, deliver, echo, announce, chatter, hold, release, ask_aside)
    tools: dict[str, Tool] = {function.__name__: function for function in functions}

    async def list_tools(ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        seen["listings"] += 1
        return types.ListToolsResult(
            tools=[
                types.Tool(name=name, input_schema=REGION if name == "deliver" else {"type": "object"})
                for name in tools
            ]
        )

    async def call_tool(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        text = await tools[params.name](ctx, params.arguments or {})
        return types.CallToolResult(content=[types.TextContent(text=text)])

    return Server("inner name", version="0.0", on_list_tools=list_tools, on_call_tool=call_tool)


def get_initialization_options(instance: Server[Any]) -> InitializationOptions:
    options = instance.create_initialization_options()
    return options.model_copy(update={"server_name": "Ledger of options", "server_version": "9.9"})
