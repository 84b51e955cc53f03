"""`manage.py call`: one call of one tool, from the shell."""

import asyncio
import json
from argparse import ArgumentParser
from typing import Any, Final

from django.core.management.base import CommandError
from mcp import types
from mcp.client import Client

from gateway.access.identity import Identity
from gateway.access.redaction import redact
from gateway.catalog.definitions import ServerDefinition
from gateway.catalog.factories import make
from gateway.management.base import LoadingCommand
from gateway.management.single_server import add_user_argument, containing_server, find

_MAX_PAGES: Final = 100
"""Pages of a tool list that are read: a server that never stops listing must not hang the shell."""


class UnknownTool(CommandError):
    """The server lists no tool of this name; the message names those that it lists."""


class Command(LoadingCommand):
    """Makes an instance, calls the tool in memory, and prints its text; an error goes to standard error."""

    help = "Call one tool of one server. Prints what it answers; exit status 1 if that is an error."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("server", help="the server's name")
        parser.add_argument("tool", help="the tool's name")
        parser.add_argument("arguments", nargs="?", default="{}", help="a JSON object (%(default)s)")
        add_user_argument(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        arguments = _parse_arguments(options["arguments"])
        definition, identity = find(options["server"], options["user_id"])
        with containing_server(identity):
            result = asyncio.run(_call(definition, identity, options["tool"], arguments))
        text = _text(result)
        if result.is_error:
            self.stderr.write(redact(text, identity.api_key) or "The tool answered with an error and no text.")
            raise SystemExit(1)
        self.stdout.write(text)


def _parse_arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise CommandError(f"The arguments are no JSON: {error}.") from None
    if not isinstance(arguments, dict):
        raise CommandError('The arguments must be a JSON object, such as {"name": "value"}.')
    return arguments


async def _call(
    definition: ServerDefinition, identity: Identity, tool: str, arguments: dict[str, Any]
) -> types.CallToolResult:
    server, _ = await make(definition.style, identity.user_id, identity.api_key)
    async with Client(server) as client:
        if client.server_capabilities.tools is not None:
            names = await _tool_names(client)
            if tool not in names:
                raise UnknownTool(f"{definition.name} has no tool {tool}. Tools: {', '.join(names) or 'none'}.")
        return await client.call_tool(tool, arguments)


async def _tool_names(client: Client) -> list[str]:
    names: list[str] = []
    cursor = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        names += [tool.name for tool in page.tools]
        if not (cursor := page.next_cursor):
            break
    return names


def _text(result: types.CallToolResult) -> str:
    """What a person reads of a result: its text, else its structured content, else what it has instead."""
    texts = [block.text for block in result.content if isinstance(block, types.TextContent)]
    if texts:
        return "\n".join(texts)
    if result.structured_content is not None:
        return json.dumps(result.structured_content, indent=2, ensure_ascii=False)
    return "\n".join(block.model_dump_json(by_alias=True, exclude_none=True) for block in result.content)
