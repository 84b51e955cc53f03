"""`manage.py call`: one call of one tool, from the shell."""

import asyncio
from argparse import ArgumentParser
from typing import Any

from gateway.management.base import LoadingCommand
from gateway.management.client_options import STATELESS, add_protocol_option, add_user_option


class Command(LoadingCommand):
    """Makes an instance, calls the tool in memory, and prints its text. Errors go to standard error."""

    help = "Call one tool of one server. Prints what it answers; exit status 1 if that is an error."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("server", help="the server's name")
        parser.add_argument("tool", help="the tool's name")
        parser.add_argument(
            "arguments", nargs="*", help="key=value (a text, or JSON where the tool wants something else), or {JSON}"
        )
        parser.add_argument(
            "--answer",
            action="append",
            default=[],
            metavar="TEXT",
            help="answers the next question that the tool asks its client: key=value or JSON for a form, decline, "
            "cancel, the model's text for sampling, folders for roots. May be repeated; without it you are asked",
        )
        add_protocol_option(parser)
        add_user_option(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        # Imported here: they import the SDK, which --help does without.
        from gateway.management.answers import Respondent
        from gateway.management.single_server import OneServer, find
        from gateway.management.tool_call import call_tool, text_of

        definition, identity = find(options["server"], options["user_id"], shows_whole_tracebacks=options["traceback"])
        one_server = OneServer(identity, shows_whole_tracebacks=options["traceback"])
        respondent = Respondent(options["answer"])
        with one_server.running():
            outcome = asyncio.run(
                call_tool(
                    definition,
                    identity,
                    respondent,
                    tool=options["tool"],
                    words=options["arguments"],
                    protocol=options["protocol"],
                )
            )
        failures = one_server.take_failures()
        if isinstance(outcome, str) or outcome.is_error:
            text = outcome if isinstance(outcome, str) else text_of(outcome)
            self.stderr.write(one_server.clean(text) or "The tool answered with an error and no text.")
            for failure in failures:
                self.stderr.write(f"\n{failure}")
            if respondent.unanswered is not None:
                self.stderr.write(
                    f"\nThe tool asked: {respondent.unanswered}\nAnswer with --answer, or run this on a terminal."
                )
            elif any("'input_req" in failure for failure in failures):
                self.stderr.write(f"\nThe tool asks its client as of {STATELESS}: add --protocol {STATELESS}.")
            raise SystemExit(1)
        self.stdout.write(text_of(outcome))
