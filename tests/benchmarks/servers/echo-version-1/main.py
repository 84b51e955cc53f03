"""The same tool as in echo-version-2, written for version 1 of the SDK: its handler runs in a thread."""

from mcp.server import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.types import TextContent, Tool


def create_server(user_id, api_key=None):
    server = Server("echo-version-1")

    @server.list_tools()
    async def list_tools():
        schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
        return [Tool(name="echo", description="Say it back", inputSchema=schema)]

    @server.call_tool()
    async def call_tool(name, arguments):
        return [TextContent(type="text", text=arguments["text"])]

    return server


server = create_server


def get_initialization_options(server_instance):
    return InitializationOptions(
        server_name="echo-version-1",
        server_version="1.0.0",
        capabilities=server_instance.get_capabilities(NotificationOptions(), {}),
    )
