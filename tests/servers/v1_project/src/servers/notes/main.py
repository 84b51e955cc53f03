"""The shape most servers have: tools and resources, credentials from the project, settings in `_meta` and beside it."""

import logging
import os
import sys
from pathlib import Path

project_root = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../.."))
sys.path.insert(0, project_root)
sys.path.insert(0, os.path.join(project_root, "src"))

from mcp.server import NotificationOptions, Server  # noqa: E402
from mcp.server.lowlevel.helper_types import ReadResourceContents  # noqa: E402
from mcp.server.models import InitializationOptions  # noqa: E402
from mcp.types import AnyUrl, Resource, TextContent, Tool  # noqa: E402
from src.auth.factory import create_auth_client  # noqa: E402

SERVICE_NAME = Path(__file__).parent.name

logging.basicConfig(level=logging.WARNING, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")
logger = logging.getLogger(SERVICE_NAME)

NOTES = {"groceries": "milk, eggs", "ideas": "a host for servers"}


def create_server(user_id, api_key=None):
    server = Server("notes-server")
    server.user_id = user_id
    server.api_key = api_key

    def get_token():
        return create_auth_client(api_key=server.api_key).get_user_credentials(SERVICE_NAME, server.user_id)["token"]

    @server.list_resources()
    async def handle_list_resources(cursor: str | None = None) -> list[Resource]:
        logger.info("Listing resources for user: %s with cursor: %s", server.user_id, cursor)
        return [
            Resource(
                uri=f"notes:///{name}",
                mimeType="text/plain",
                name=name,
                description=f"Note {name}",
                hasChildren=False,
                parentUri="notes:///",
            )
            for name in NOTES
        ] + [Resource(uri=AnyUrl("https://notes.example"), name="home", size=12)]

    @server.read_resource()
    async def handle_read_resource(uri: AnyUrl) -> list[ReadResourceContents]:
        name = str(uri).replace("notes:///", "")
        if uri == AnyUrl("notes:///all"):
            return [ReadResourceContents(content=text, mime_type="text/markdown") for text in NOTES.values()]
        if name not in NOTES:
            raise ValueError(f"No note {name} ({uri.scheme})")
        return [ReadResourceContents(content=NOTES[name], mime_type="text/plain", meta={"words": 2})]

    @server.list_tools()
    async def handle_list_tools() -> list[Tool]:
        return [
            Tool(
                name="read_note",
                description="Read one note",
                inputSchema={
                    "type": "object",
                    "properties": {"name": {"type": "string", "description": "Which note"}},
                    "required": ["name"],
                },
                outputSchema={"type": "array", "items": {"type": "string"}, "examples": [["milk"]]},
                requiredScopes=["notes.read"],
            ),
            Tool(name="whoami", description="Who is calling", inputSchema={"type": "object", "properties": {}}),
        ]

    @server.call_tool()
    async def handle_call_tool(name: str, arguments: dict | None) -> list[TextContent]:
        logger.info("User %s calling tool: %s", server.user_id, name)
        if name == "whoami":
            return [
                TextContent(type="text", text=f"{server.user_id}, {get_token()}"),
                TextContent(type="text", text=str(arguments)),
            ]
        if name == "read_note":
            return [TextContent(type="text", text=NOTES[arguments["name"]])]
        raise ValueError(f"Unknown tool: {name}")

    return server


server = create_server


def get_initialization_options(server_instance: Server) -> InitializationOptions:
    return InitializationOptions(
        server_name="notes-server",
        server_version="1.0.0",
        capabilities=server_instance.get_capabilities(
            notification_options=NotificationOptions(),
            experimental_capabilities={},
        ),
    )
