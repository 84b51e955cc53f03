"""The base class of commands that load servers' code."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from gateway.management.command_exit import ending_despite_threads


class LoadingCommand(BaseCommand):
    """A command that ends even if servers left threads behind. It runs no system checks: these are about hosts."""

    requires_system_checks: list[str] = []

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Return a parser that takes options between positional arguments: `call NAME TOOL --user-id me key=value`."""
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        setattr(parser, "parse_args", parser.parse_intermixed_args)  # noqa: B010  (mypy takes no assignment)
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        """Run the command."""
        with ending_despite_threads():
            super().run_from_argv(argv)
