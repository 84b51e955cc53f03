"""server_template: greets people, and counts for each user how often."""

from itertools import count
from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext
from mcp.server.models import InitializationOptions

GREET = types.Tool(
    name="greet",
    description="Greet somebody by name",
    input_schema={
        "type": "object",
        "properties": {"name": {"type": "string", "description": "Who is greeted"}},
        "required": ["name"],
    },
)


def server(user_id: str, api_key: str | None = None) -> Server[Any]:
    """Make the instance of one user and key. Keep in here what belongs to that user alone."""
    numbers = count(1)

    async def list_tools(
        ctx: ServerRequestContext, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[GREET])

    async def call_tool(ctx: ServerRequestContext, params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name != GREET.name:
            return failure(f"Unknown tool: {params.name}")
        name = (params.arguments or {}).get("name")
        if not isinstance(name, str) or not name:
            # The SDK does not check arguments against the schema. The tool has to.
            return failure("Argument 'name' must be a text")
        return answer(f"Hello, {name}! This is greeting number {next(numbers)} for {user_id}.")

    return Server("server_template", version="0.1.0", on_list_tools=list_tools, on_call_tool=call_tool)


def get_initialization_options(instance: Server[Any]) -> InitializationOptions:
    return instance.create_initialization_options()


def answer(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)])


def failure(text: str) -> types.CallToolResult:
    """Return an error for the model, which may correct its arguments and try again."""
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=True)
