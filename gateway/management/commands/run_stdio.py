"""`manage.py run_stdio`: one server over standard input and output, for local clients."""

import asyncio
import os
import sys
from argparse import ArgumentParser
from io import TextIOWrapper
from typing import Any

import anyio
from mcp.server.stdio import stdio_server

from gateway.access.identity import Identity
from gateway.catalog.definitions import ServerDefinition
from gateway.catalog.factories import make
from gateway.management.base import LoadingCommand
from gateway.management.single_server import add_user_argument, containing_server, find


class Command(LoadingCommand):
    """Serves one instance of one server until standard input ends. Logs go to standard error."""

    help = "Run one server over standard input and output."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--server", required=True, help="the server's name")
        add_user_argument(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        definition, identity = find(options["server"], options["user_id"])
        # Only the protocol may be written to standard output: a descriptor of its own, before the server is kept from
        # the one that everybody knows.
        protocol_out = TextIOWrapper(os.fdopen(os.dup(sys.stdout.fileno()), "wb"), encoding="utf-8")
        with containing_server(identity):
            asyncio.run(_serve(definition, identity, protocol_out))


async def _serve(definition: ServerDefinition, identity: Identity, protocol_out: TextIOWrapper) -> None:
    server, initialization_options = await make(definition.style, identity.user_id, identity.api_key)
    async with stdio_server(stdout=anyio.wrap_file(protocol_out)) as (reader, writer):
        await server.run(reader, writer, initialization_options)
