"""What is kept of the lists of a server."""

import json
from typing import Any

from mcp.server.lowlevel import Server
from mcp_types import ListToolsResult, Tool

from gateway.instances.listings import MAX_DEFINITION_BYTES, MAX_DEFINITIONS_BYTES, Listing, ask_listing


def server_of(tools: list[Tool]) -> Server[Any]:
    async def list_tools(ctx: Any, params: Any) -> ListToolsResult:
        return ListToolsResult(tools=tools)

    return Server("several", on_list_tools=list_tools)


async def listing_of(*tools: Tool) -> Listing:
    return await ask_listing(server_of(list(tools)), {})


def tool(name: str, description: str) -> Tool:
    return Tool(name=name, description=description, input_schema={"type": "object"})


async def test_definitions_of_tools_are_kept_as_ascii_for_operators() -> None:
    listing = await listing_of(tool("echo", "Says \ud83d\ude00 it.\x00"))
    assert listing.tools == ("echo",)
    assert listing.tool_definitions.isascii()
    assert "\x00" not in listing.tool_definitions
    [definition] = json.loads(listing.tool_definitions)
    assert definition["name"] == "echo"
    assert definition["inputSchema"] == {"type": "object"}


async def test_definition_that_is_too_long_is_left_out_and_its_tool_is_not() -> None:
    listing = await listing_of(tool("long", "x" * MAX_DEFINITION_BYTES), tool("short", "y"))
    long, short = json.loads(listing.tool_definitions)
    assert long == {"name": "long"}
    assert short["description"] == "y"


async def test_definitions_of_all_tools_are_bounded_together() -> None:
    listing = await listing_of(*(tool(f"tool-{number}", "x" * 10_000) for number in range(100)))
    assert len(listing.tools) == 100
    assert len(listing.tool_definitions) < MAX_DEFINITIONS_BYTES + 100 * 100
    assert len(json.loads(listing.tool_definitions)) == 100
