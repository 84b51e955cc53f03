"""One call of one tool in memory, and what a person reads of its result."""

import json
from collections.abc import Sequence

from mcp import types
from mcp.shared.exceptions import MCPError

from gateway.access.identity import Identity
from gateway.catalog.definitions import ServerDefinition
from gateway.management.answers import Respondent
from gateway.management.in_memory_client import all_tools, connected, unknown_name
from gateway.management.progress import Progress
from gateway.management.tool_arguments import parse_arguments


async def call_tool(
    definition: ServerDefinition,
    identity: Identity,
    respondent: Respondent,
    *,
    tool: str,
    words: Sequence[str],
    protocol: str,
) -> types.CallToolResult | str:
    """Call a tool with the arguments of a command line. Returns its result, or the text of a protocol error.

    Raises:
        CommandError: there is no such tool, or the arguments cannot be read.
        BaseException: what the server's own code raised outside of the call.
    """
    progress = Progress()
    async with connected(definition, identity, respondent, protocol) as client:
        tools = {found.name: found for found in await all_tools(client)}
        if tool not in tools and client.server_capabilities.tools is not None:
            raise unknown_name(definition.name, "tool", tool, list(tools))
        arguments = parse_arguments(words, tools[tool].input_schema if tool in tools else {})
        try:
            return await client.call_tool(tool, arguments, progress_callback=progress.show)
        except MCPError as error:
            return str(error) or type(error).__name__
        finally:
            progress.close()


def text_of(result: types.CallToolResult) -> str:
    """Return what a person reads of a result: its text, else its structured content, else what it has instead."""
    texts = [block.text for block in result.content if isinstance(block, types.TextContent)]
    if texts:
        return "\n".join(texts)
    if result.structured_content is not None:
        return json.dumps(result.structured_content, indent=2, ensure_ascii=False)
    return "\n".join(block.model_dump_json(by_alias=True, exclude_none=True) for block in result.content)
