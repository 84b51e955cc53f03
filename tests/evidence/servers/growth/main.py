"""A folder with one tool, whose answers are as long as they are asked to be."""

from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext


def server(user_id: str, api_key: str | None = None) -> Server[Any]:
    async def list_tools(ctx: ServerRequestContext[Any], params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name="text", input_schema={"type": "object"})])

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        length = int((params.arguments or {}).get("length", 2))
        return types.CallToolResult(content=[types.TextContent(text="x" * length)])

    return Server("growth", version="1", on_list_tools=list_tools, on_call_tool=call_tool)


def get_initialization_options(instance: Server[Any]) -> Any:
    return instance.create_initialization_options()
