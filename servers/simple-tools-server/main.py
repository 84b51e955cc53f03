"""simple-tools-server: a small key-value store for each user.

This is the shortest complete server, and the one to copy. A folder in the servers directory is a server if its
`main.py` has two names:

* `server(user_id, api_key)` makes one instance, an `mcp.server.Server`. The host calls it once for each user and key,
  and keeps the instance across reconnects, so a user finds stored data again. What two users must not share belongs
  into this function, not into the module.
* `get_initialization_options(instance)` says what the server tells a client that connects.

All of this runs on one event loop that belongs to this server alone, so a plain dictionary needs no lock. The data is
gone when the host restarts, or when the user has not called for a while.
"""

from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext
from mcp.server.models import InitializationOptions

KEY = {"type": "string", "description": "Name of the entry"}

TOOLS = [
    types.Tool(
        name="store-data",
        description="Store a value under a key, in place of an earlier one",
        input_schema={
            "type": "object",
            "properties": {"key": KEY, "value": {"type": "string", "description": "Text to keep"}},
            "required": ["key", "value"],
        },
    ),
    types.Tool(
        name="retrieve-data",
        description="Return the value stored under a key",
        input_schema={"type": "object", "properties": {"key": KEY}, "required": ["key"]},
    ),
    types.Tool(
        name="list-data",
        description="Return all stored keys with their values",
        input_schema={"type": "object", "properties": {}},
    ),
]


class ToolFailure(Exception):
    """The call cannot be carried out. The message is for the model, which may correct itself and try again."""


def server(user_id: str, api_key: str | None = None) -> Server[dict[str, Any]]:
    """Make the instance of one user, with an empty store."""
    data: dict[str, str] = {}

    async def list_tools(
        ctx: ServerRequestContext, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=TOOLS)

    async def call_tool(ctx: ServerRequestContext, params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            answer = run(params.name, params.arguments or {})
        except ToolFailure as failure:
            # Spec 2025-11-25 server/tools#error-handling: what the model can repair is a result, not a protocol error.
            return types.CallToolResult(content=[types.TextContent(text=str(failure))], is_error=True)
        return types.CallToolResult(content=[types.TextContent(text=answer)])

    def run(tool: str, arguments: dict[str, Any]) -> str:
        match tool:
            case "store-data":
                key, value = text(arguments, "key"), text(arguments, "value")
                data[key] = value
                return f"Stored '{key}' with value: {value}"
            case "retrieve-data":
                key = text(arguments, "key")
                return f"Value for '{key}': {data[key]}" if key in data else f"Key '{key}' not found"
            case "list-data":
                if not data:
                    return "No data stored"
                return "\n".join(["Stored data:", *(f"- {key}: {value}" for key, value in data.items())])
            case _:
                raise ToolFailure(f"Unknown tool: {tool}")

    return Server("simple-tools-server", version="1.0.0", on_list_tools=list_tools, on_call_tool=call_tool)


def text(arguments: dict[str, Any], name: str) -> str:
    """Return a required text argument. The SDK does not check arguments against a tool's schema: the tool does."""
    value = arguments.get(name)
    if value is None:
        raise ToolFailure(f"Missing argument: {name}")
    if not isinstance(value, str):
        raise ToolFailure(f"Argument '{name}' must be a string")
    return value


def get_initialization_options(instance: Server[dict[str, Any]]) -> InitializationOptions:
    """Return the name, version and capabilities of an instance. The SDK derives the capabilities from its handlers."""
    return instance.create_initialization_options()
