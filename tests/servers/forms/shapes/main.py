"""shapes: a tool with every kind of argument, and answers that a page must not believe."""

import asyncio
import json
from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext
from mcp.server.models import InitializationOptions

EVERYTHING = {
    "type": "object",
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "zip": {"type": "integer"}},
            "required": ["city"],
        }
    },
    "properties": {
        "title": {"type": "string", "description": "Any text", "maxLength": 20},
        "colour": {"enum": ["red", "green", 3]},
        "amount": {"type": "number", "minimum": 0.5, "maximum": 10},
        "count": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "Count"},
        "urgent": {"type": "boolean"},
        "loud": {"type": "boolean", "default": True},
        "place": {"$ref": "#/$defs/place", "description": "Where it is"},
        "rows": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}, "minItems": 1},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}},
        "free": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        "tree": {"$ref": "#"},
        "__proto__": {"type": "string"},
    },
    "required": ["title", "colour", "amount", "rows"],
}
# A form of it would have 20 ** 6 fields.
ENDLESS = {
    "type": "object",
    "$defs": {
        f"level{depth}": {
            "type": "object",
            "properties": {f"p{number}": {"$ref": f"#/$defs/level{depth + 1}"} for number in range(20)},
        }
        for depth in range(8)
    },
    "properties": {"start": {"$ref": "#/$defs/level0"}},
}
ADDRESS = {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]}
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\x1b[31m\u202eabc"
SVG = "PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciIG9ubG9hZD0iYWxlcnQoMSkiLz4="

cancelled: list[str] = []


def server(user_id: str, api_key: str | None = None) -> Server[Any]:
    nothing = {"type": "object", "properties": {}}
    tools = [
        types.Tool(name="shape", description="Repeat the arguments", input_schema=EVERYTHING),
        types.Tool(name="wait", description="Wait for a minute", input_schema=nothing),
        types.Tool(name="was_cancelled", description="Who was cancelled", input_schema=nothing),
        types.Tool(name="hostile", description=HOSTILE, input_schema=nothing),
        types.Tool(name="endless", input_schema=ENDLESS),
        types.Tool(name="ask_to_open", description="Ask to open an address", input_schema=ADDRESS),
    ]

    async def list_tools(
        ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools)

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name == "hostile":
            return hostile_result()
        if params.name == "ask_to_open":
            url = str((params.arguments or {})["url"])
            answer = await ctx.session.elicit_url("Please open", url, "an-id")
            return types.CallToolResult(content=[types.TextContent(text=answer.action)])
        if params.name == "wait":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(user_id)
                raise
        said = cancelled if params.name == "was_cancelled" else params.arguments
        return types.CallToolResult(
            content=[types.TextContent(text=json.dumps(said, sort_keys=True))], structured_content={"said": said}
        )

    return Server("shapes", on_list_tools=list_tools, on_call_tool=call_tool)


def hostile_result() -> types.CallToolResult:
    return types.CallToolResult(
        content=[
            types.TextContent(text=HOSTILE),
            types.ImageContent(data=SVG, mime_type="image/svg+xml"),
            types.ImageContent(data='x" onerror="alert(1)', mime_type="image/png"),
            types.EmbeddedResource(
                resource=types.TextResourceContents(uri="javascript:alert(1)", mime_type="text/html", text=HOSTILE)
            ),
            types.ResourceLink(name=HOSTILE, uri="javascript:alert(2)"),
        ]
    )


def get_initialization_options(instance: Server[Any]) -> InitializationOptions:
    return instance.create_initialization_options()
