"""`manage.py run_stdio`: one server over standard input and output, for local clients."""

import asyncio
import os
import sys
from argparse import ArgumentParser
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError

from gateway.management.base import LoadingCommand
from gateway.management.client_options import add_user_option

if TYPE_CHECKING:
    from gateway.access.identity import Identity
    from gateway.catalog.definitions import ServerDefinition


class Command(LoadingCommand):
    """Serves one instance of one server until standard input ends. Logs and errors go to standard error."""

    help = "Run one server over standard input and output."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("server", nargs="?", help="the server's name")
        parser.add_argument("--server", dest="server_option", metavar="NAME", help="the same, as an option")
        add_user_option(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        # Imported here: it imports the SDK, which --help does without.
        from gateway.management.single_server import OneServer, find

        names = [name for name in (options["server"], options["server_option"]) if name is not None]
        if len(names) != 1:
            raise CommandError("Name one server: run_stdio NAME.")
        definition, identity = find(names[0], options["user_id"], shows_whole_tracebacks=options["traceback"])
        one_server = OneServer(identity, shows_whole_tracebacks=options["traceback"])
        one_server.on_failure = lambda text: self.stderr.write(f"\n{text}")
        # Only the protocol may be written to standard output: it gets a descriptor of its own, before the server is
        # kept from the usual one.
        protocol_out = TextIOWrapper(os.fdopen(os.dup(sys.stdout.fileno()), "wb"), encoding="utf-8")
        with one_server.running():
            asyncio.run(_serve(definition, identity, protocol_out))


async def _serve(definition: "ServerDefinition", identity: "Identity", protocol_out: TextIOWrapper) -> None:
    import anyio
    from mcp.server.stdio import stdio_server

    from gateway.catalog.factories import make

    server, initialization_options = await make(definition.style, identity.user_id, identity.api_key)
    async with stdio_server(stdout=anyio.wrap_file(protocol_out)) as (reader, writer):
        await server.run(reader, writer, initialization_options)
