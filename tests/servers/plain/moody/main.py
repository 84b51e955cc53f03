"""moody: a factory whose behaviour is named by the first word of the user id, the rest of which is free."""

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext

built: Counter[str] = Counter()
"""How often the factory was called for each user id."""


def server(user_id: str, api_key: str | None = None) -> Any:
    built[user_id] += 1
    mood = user_id.partition("-")[0]
    if mood == "raises" or (mood == "flaky" and built[user_id] == 1):
        raise RuntimeError(f"no connection for {user_id} with {api_key}")
    if mood == "exits":
        raise SystemExit(1)
    if mood == "nonsense":
        return {"not": "a server"}
    if mood == "slow":
        time.sleep(0.3)
    if mood == "stuck" and built[user_id] == 1:
        time.sleep(1.5)

    async def list_tools(
        ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        if mood == "listless":
            await asyncio.Event().wait()
        if mood == "fleeing":
            raise SystemExit(3)
        return types.ListToolsResult(tools=[types.Tool(name="built", input_schema={"type": "object"})])

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(text=str(built[user_id]))])

    @asynccontextmanager
    async def lifespan(server: Server[Any]):
        if mood == "lifeless":
            raise RuntimeError(f"no lifespan for {user_id} with {api_key}")
        if mood == "endless":
            await asyncio.Event().wait()
        yield {"mood": mood}

    version = "optionless" if mood == "optionless" else "1.0"
    return Server("moody", version=version, on_list_tools=list_tools, on_call_tool=call_tool, lifespan=lifespan)


def get_initialization_options(instance: Server[Any]) -> Any:
    return instance.create_initialization_options() if instance.version != "optionless" else None
