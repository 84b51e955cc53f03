"""Progress both ways, the request context, a lifespan and version 1's positional constructor."""

from contextlib import asynccontextmanager

from mcp import types
from mcp.server import NotificationOptions, Server
from mcp.server.lowlevel.server import request_ctx
from mcp.server.models import InitializationOptions
from mcp.types import ServerNotification


@asynccontextmanager
async def lifespan(server):
    yield {"opened_for": server.name}


def create_server(user_id, api_key=None):
    server = Server("progress", "3.0", "Report progress.", None, None, lifespan)
    heard = []

    @server.progress_notification()
    async def handle_progress(token: str | int, progress: float, total: float | None, message: str | None) -> None:
        heard.append(f"{token}: {progress}/{total} {message}")

    @server.list_tools()
    async def list_tools() -> list[types.Tool]:
        schema = {"type": "object", "properties": {"steps": {"type": "integer"}}}
        return [types.Tool(name=name, inputSchema=schema) for name in ("work", "heard", "context")]

    @server.call_tool()
    async def call_tool(name: str, arguments: dict) -> list[types.TextContent]:
        context = server.request_context
        if name == "heard":
            return [types.TextContent(type="text", text="\n".join(heard))]
        if name == "context":
            same = request_ctx.get() is context
            opened_for = context.lifespan_context["opened_for"]
            return [types.TextContent(type="text", text=f"{same}, {opened_for}, {context.request_id is not None}")]
        token = context.meta.progressToken if context.meta else None
        for step in range(arguments["steps"]):
            if token is not None:
                await context.session.send_progress_notification(token, float(step), arguments["steps"], f"step {step}")
        notification = types.LoggingMessageNotification(
            method="notifications/message",
            params=types.LoggingMessageNotificationParams(level="info", data="done"),
        )
        await context.session.send_notification(ServerNotification(notification))
        return [types.TextContent(type="text", text=f"did {arguments['steps']} steps, token {token}")]

    return server


server = create_server


def get_initialization_options(server_instance: Server) -> InitializationOptions:
    return server_instance.create_initialization_options(NotificationOptions(), {"progress": {"version": 1}})
