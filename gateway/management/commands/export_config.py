"""`manage.py export_config FILE`: how the host is to run and who may do what, as JSON without secrets."""

import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError

from gateway.management.tables import needing_tables

TO_STANDARD_OUTPUT: Final = "-"


class Command(BaseCommand):
    """Writes a new file, which its owner alone can read: it names users."""

    help = "Write servers' limits, groups, users, keys and alerts, without secrets, to a JSON file, for import_config."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", help=f"a file that does not exist yet; {TO_STANDARD_OUTPUT} is standard output")

    def handle(self, *args: Any, **options: Any) -> None:
        # Imported here: --help does without.
        from gateway.management.configuration_export import exported
        from gateway.management.configuration_file import LISTS, ConfigurationError

        try:
            with needing_tables():
                configuration = exported()
        except ConfigurationError as error:
            raise CommandError(str(error)) from None
        if options["file"] == TO_STANDARD_OUTPUT:
            self.stdout.write(configuration.to_json(), ending="")
            return
        path = Path(options["file"])
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(configuration.to_json())
        except FileExistsError:
            raise CommandError(f"{path} exists. Name a new file, or remove it first.") from None
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror}.") from None
        counts = ", ".join(f"{len(getattr(configuration, name))} {name.replace('_', ' ')}" for name in LISTS)
        self.stdout.write(f"Wrote {path}: {counts}. Passwords, keys' texts and settings (.env) are not in it.")
