"""A vendor client that blocks, called from async handlers, imported where it is used, and kept on the server."""

import asyncio
import os
import sys
import time

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "..")))

from mcp.server import NotificationOptions, Server
from mcp.server.models import InitializationOptions


class VendorClient:
    """Bound to the loop that it was made on, as an aiohttp session is."""

    def __init__(self, token):
        self.token = token
        self.loop = asyncio.get_running_loop()

    async def fetch(self, path):
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("Session is bound to a different event loop")
        await asyncio.sleep(0)
        return f"{path} for {self.token}"


def create_server(user_id, api_key=None):
    server = Server("slow-vendor")
    server.user_id = user_id
    server.api_key = api_key
    server.client = None

    async def get_client():
        from src.auth.factory import create_auth_client

        if server.client is None:
            credentials = create_auth_client(server.api_key).get_user_credentials("slow-vendor", server.user_id)
            server.client = VendorClient(credentials["token"])
        return server.client

    @server.list_tools()
    async def list_tools():
        from mcp.types import Tool

        schema = {"type": "object", "properties": {"seconds": {"type": "number"}, "path": {"type": "string"}}}
        return [Tool(name=name, inputSchema=schema) for name in ("sleep", "fetch", "in_thread")]

    @server.call_tool()
    async def call_tool(name, arguments):
        from mcp.types import TextContent

        if name == "sleep":
            time.sleep(arguments["seconds"])  # what a blocking vendor client amounts to
            return [TextContent(type="text", text="slept")]
        if name == "in_thread":
            await asyncio.to_thread(time.sleep, arguments["seconds"])
            return [TextContent(type="text", text="slept elsewhere")]
        client = await get_client()
        return [TextContent(type="text", text=await client.fetch(arguments["path"]))]

    return server


server = create_server


def get_initialization_options(server_instance):
    return InitializationOptions(
        server_name="slow-vendor",
        server_version="1.0.0",
        capabilities=server_instance.get_capabilities(
            notification_options=NotificationOptions(), experimental_capabilities={}
        ),
    )
