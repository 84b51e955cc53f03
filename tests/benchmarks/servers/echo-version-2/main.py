"""The same tool as in echo-version-1, written for version 2 of the SDK: its handler runs in the server's lane."""

from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext
from mcp.server.models import InitializationOptions


def server(user_id: str, api_key: str | None = None) -> Server[Any]:
    async def list_tools(
        ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
        return types.ListToolsResult(tools=[types.Tool(name="echo", description="Say it back", input_schema=schema)])

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(text=(params.arguments or {})["text"])])

    return Server("echo-version-2", version="1.0.0", on_list_tools=list_tools, on_call_tool=call_tool)


def get_initialization_options(instance: Server[Any]) -> InitializationOptions:
    return instance.create_initialization_options()
