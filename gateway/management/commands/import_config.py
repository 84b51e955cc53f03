"""`manage.py import_config FILE`: bring this database to what a file of `manage.py export_config` says."""

from argparse import ArgumentParser
from collections import Counter
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gateway.management.tables import needing_tables


class Command(BaseCommand):
    """Prints what changes. Exits with 1 if something was refused, except keys, which no file can carry over."""

    help = (
        "Bring servers' limits, groups, users, keys and alerts to what a file of export_config says. What the file "
        "does not name is left alone. A host that is running takes the changes over within five seconds."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="what `manage.py export_config` has written")
        parser.add_argument("--dry-run", action="store_true", help="only say what would change, and write nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        # Imported here: --help does without.
        from gateway.management.configuration_file import ConfigurationError, read_configuration
        from gateway.management.configuration_import import import_configuration

        try:
            configuration = read_configuration(options["file"])
            with needing_tables():
                changes = import_configuration(configuration, is_dry_run=options["dry_run"])
        except ConfigurationError as error:
            raise CommandError(str(error)) from None
        shows_all = options["verbosity"] > 1
        for change in changes:
            if shows_all or change.outcome != "unchanged":
                detail = f": {change.detail}" if change.detail else ""
                self.stdout.write(f"{change.outcome:<10}{change.kind:<8}{change.name}{detail}")
        counts = Counter(change.outcome for change in changes)
        summary = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("added", "changed", "unchanged", "refused"))
        self.stdout.write(f"{summary}.{' Nothing was written (--dry-run).' if options['dry_run'] else ''}")
        if any(change.kind == "user" and change.outcome == "added" for change in changes):
            self.stdout.write("New users have no password. To give one: manage.py changepassword NAME, or the admin.")
        if any(change.kind == "alert" and change.outcome == "added" for change in changes):
            self.stdout.write(
                "New webhooks have a signing secret of their own. The admin shows it: New signing secret."
            )
        if any(change.outcome == "refused" and change.kind != "key" for change in changes):
            raise SystemExit(1)
