"""The style of the contract: a factory that makes a low-level `Server` for a user and their key."""

from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext
from mcp.server.models import InitializationOptions

WHOAMI = types.Tool(name="whoami", input_schema={"type": "object"})


def server(user_id: str, api_key: str | None = None) -> Server[Any]:
    async def list_tools(
        ctx: ServerRequestContext, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[WHOAMI])

    async def call_tool(ctx: ServerRequestContext, params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(text=f"{user_id} with {api_key}")])

    return Server("factory", on_list_tools=list_tools, on_call_tool=call_tool)


def get_initialization_options(instance: Server[Any]) -> InitializationOptions:
    options = instance.create_initialization_options()
    return options.model_copy(update={"server_version": "1.0"})
