"""What commands have in common that load servers' code."""

from django.core.management.base import BaseCommand

from gateway.management.command_exit import ending_despite_threads


class LoadingCommand(BaseCommand):
    """A command that ends whatever threads servers have left, and asks no system checks: they are about hosts."""

    requires_system_checks: list[str] = []

    def run_from_argv(self, argv: list[str]) -> None:
        """Do what the command line says."""
        with ending_despite_threads():
            super().run_from_argv(argv)
