"""`manage.py run_stdio`: one server over standard input and output, for local clients."""

import asyncio
import os
import sys
from argparse import ArgumentParser
from io import TextIOWrapper
from typing import Any

import anyio
from django.core.management.base import BaseCommand, CommandError
from mcp.server.stdio import stdio_server

from gateway.apps import GatewayConfig
from gateway.conf import conf
from gateway.exceptions import GatewayError
from gateway.identity import parse_user_id
from gateway.styles import make


class Command(BaseCommand):
    """Serves one instance of one server until standard input ends. Logs go to standard error."""

    help = "Run one server over standard input and output."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--server", required=True, help="the server's name")
        parser.add_argument(
            "--user-id",
            default="local",
            help="whose instance to make (its key, if any: GUMCP_API_KEY in the environment)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        registry = GatewayConfig.current().registry
        try:
            definition = registry.get(options["server"])
            user_id = parse_user_id(options["user_id"])
        except GatewayError as error:
            names = ", ".join(registry.names) or "none"
            raise CommandError(f"{error} Servers: {names}.") from None
        # Only the protocol may be written to standard output: what the server prints goes to standard error.
        protocol_out = TextIOWrapper(os.fdopen(os.dup(sys.stdout.fileno()), "wb"), encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        async def serve() -> None:
            server, initialization_options = await make(definition.style, user_id, conf.api_key)
            async with stdio_server(stdout=anyio.wrap_file(protocol_out)) as (reader, writer):
                await server.run(reader, writer, initialization_options)

        asyncio.run(serve())
