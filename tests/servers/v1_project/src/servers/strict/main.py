"""Asks for validation, declares what its tools return, and reaches the SDK through `import mcp`."""

import mcp
import mcp.server
import mcp.server.models
import mcp.types


def create_server(user_id, api_key=None):
    server = mcp.server.Server("strict", version="1.0")

    @server.list_tools()
    async def list_tools() -> list[mcp.types.Tool]:
        return [
            mcp.types.Tool(
                name="add",
                title="Add",
                inputSchema={
                    "type": "object",
                    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                    "required": ["a", "b"],
                },
                outputSchema={
                    "type": "object",
                    "properties": {"sum": {"type": "integer"}},
                    "required": ["sum"],
                },
                annotations=mcp.types.ToolAnnotations(readOnlyHint=True, title="Adds"),
            )
        ]

    @server.call_tool(validate_input=True)
    async def call_tool(name: str, arguments: dict):
        return {"sum": arguments["a"] + arguments["b"]}

    return server


server = create_server


def get_initialization_options(server_instance):
    return mcp.server.models.InitializationOptions(
        server_name="strict",
        server_version="1.0",
        capabilities=server_instance.get_capabilities(mcp.server.NotificationOptions(), {}),
    )
