"""Registers handlers in the registry itself, as the decorators do, with a `main()` for stdio at the end."""

import asyncio

import mcp.server.stdio
import mcp.types as types
from mcp.server import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.types import *  # noqa: F403

TOOL = types.Tool(name="echo", inputSchema={"type": "object", "properties": {"text": {"type": "string"}}})


def create_server(user_id, api_key=None):
    server = Server("raw-handlers")

    async def list_tools(request: types.ListToolsRequest) -> types.ServerResult:
        return types.ServerResult(types.ListToolsResult(tools=[TOOL]))

    async def call_tool(request: types.CallToolRequest) -> types.ServerResult:
        arguments = request.params.arguments or {}
        known = ", ".join(sorted(TOOL.inputSchema["properties"]))
        text = f"{request.method} {request.params.name} {arguments.get('text')} ({known})"
        return types.ServerResult(types.CallToolResult(content=[TextContent(type="text", text=text)]))  # noqa: F405

    server.request_handlers[types.ListToolsRequest] = list_tools
    server.request_handlers[types.CallToolRequest] = call_tool
    return server


server = create_server


def get_initialization_options(server_instance: Server) -> InitializationOptions:
    assert types.CallToolRequest in server_instance.request_handlers
    return InitializationOptions(
        server_name="raw-handlers",
        server_version="1.0.0",
        capabilities=server_instance.get_capabilities(NotificationOptions(), {}),
    )


async def main():
    instance = create_server("local")
    async with mcp.server.stdio.stdio_server() as (read_stream, write_stream):
        await instance.run(read_stream, write_stream, get_initialization_options(instance))


if __name__ == "__main__":
    asyncio.run(main())
