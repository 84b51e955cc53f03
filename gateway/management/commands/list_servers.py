"""`manage.py list_servers`: what was found in the server directories."""

import json
from argparse import ArgumentParser
from typing import Any

from gateway.apps import GatewayConfig
from gateway.management.base import LoadingCommand


class Command(LoadingCommand):
    """Prints every server folder, and exits with 1 if one of them failed to load."""

    help = "List the servers that were found, and why others failed to load (exit status 1)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")

    def handle(self, *args: Any, **options: Any) -> None:
        registry = GatewayConfig.current().registry
        rows = [
            {"name": found.name, "status": "loaded", "folder": str(found.folder), "reason": ""} for found in registry
        ] + [
            {"name": failure.name, "status": "failed", "folder": str(failure.folder), "reason": failure.reason}
            for failure in registry.failures
        ]
        if options["json"]:
            self.stdout.write(json.dumps(rows, indent=2))
        else:
            self._write_table(rows)
        if registry.failures:
            raise SystemExit(1)

    def _write_table(self, rows: list[dict[str, str]]) -> None:
        columns = ["name", "status", "folder", "reason"]
        widths = {column: max([len(column), *(len(row[column]) for row in rows)]) for column in columns}
        self.stdout.write("  ".join(column.upper().ljust(widths[column]) for column in columns).rstrip())
        for row in rows:
            self.stdout.write("  ".join(row[column].ljust(widths[column]) for column in columns).rstrip())
        self.stdout.write(f"{sum(row['status'] == 'loaded' for row in rows)} of {len(rows)} loaded")
