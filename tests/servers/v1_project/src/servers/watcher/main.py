"""Subscriptions and the logging level, told to the client through the session."""

import mcp.types as types
from mcp.server import NotificationOptions, Server
from mcp.server.models import InitializationOptions


def create_server(user_id, api_key=None):
    server = Server("watcher")
    server.watched = {}
    server.level = "warning"

    @server.list_resources()
    async def list_resources() -> list[types.Resource]:
        return [types.Resource(uri=uri, name=uri.split("/")[-1]) for uri in sorted(server.watched)]

    @server.subscribe_resource()
    async def subscribe(uri: types.AnyUrl) -> None:
        if uri.scheme != "watch":
            raise ValueError(f"cannot watch {uri}")
        server.watched[str(uri)] = uri

    @server.unsubscribe_resource()
    async def unsubscribe(uri: types.AnyUrl) -> None:
        del server.watched[str(uri)]

    @server.set_logging_level()
    async def set_level(level: types.LoggingLevel) -> None:
        server.level = level

    @server.list_tools()
    async def list_tools() -> list[types.Tool]:
        return [types.Tool(name="touch", inputSchema={"type": "object"})]

    @server.call_tool()
    async def call_tool(name, arguments):
        session = server.request_context.session
        for uri in server.watched.values():
            await session.send_resource_updated(uri)
        await session.send_log_message(level=server.level, data={"touched": len(server.watched)}, logger="watcher")
        await session.send_tool_list_changed()
        return [types.TextContent(type="text", text=f"{len(server.watched)} at {server.level}")]

    return server


server = create_server


def get_initialization_options(server_instance: Server) -> InitializationOptions:
    return InitializationOptions(
        server_name="watcher",
        server_version="1.0.0",
        capabilities=server_instance.get_capabilities(NotificationOptions(tools_changed=True), {}),
    )
