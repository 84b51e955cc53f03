"""`manage.py inspect`: what one server offers, with the parameters of its tools; reads a resource, gets a prompt."""

import asyncio
import json
from argparse import ArgumentParser
from typing import Any

from gateway.management.base import LoadingCommand
from gateway.management.client_options import add_protocol_option, add_user_option


class Command(LoadingCommand):
    """Makes an instance of one server, asks it in memory what it offers, and prints that."""

    help = "List the tools, resources and prompts of one server; read a resource; get a prompt."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("server", help="the server's name")
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--resource", metavar="URI", help="read this resource instead")
        what.add_argument("--prompt", metavar="NAME", help="get this prompt instead")
        parser.add_argument("arguments", nargs="*", help="of the prompt: key=value")
        parser.add_argument("--json", action="store_true", help="print JSON")
        add_protocol_option(parser)
        add_user_option(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        # Imported here: they import the SDK, which --help does without.
        from gateway.management.inspection import inspect
        from gateway.management.single_server import OneServer, find

        definition, identity = find(options["server"], options["user_id"], shows_whole_tracebacks=options["traceback"])
        one_server = OneServer(identity, shows_whole_tracebacks=options["traceback"])
        with one_server.running():
            report = asyncio.run(
                inspect(
                    definition,
                    identity,
                    protocol=options["protocol"],
                    resource=options["resource"],
                    prompt=options["prompt"],
                    words=options["arguments"],
                )
            )
        self.stdout.write(json.dumps(report.facts, indent=2, ensure_ascii=False) if options["json"] else report.text())
