"""`manage.py list_servers`: what was found in the server directories."""

import json
from argparse import ArgumentParser
from typing import Any

from gateway.apps import GatewayConfig
from gateway.catalog.definitions import ServerDefinition
from gateway.management.base import LoadingCommand


class Command(LoadingCommand):
    """Prints every server folder, and exits with 1 if one of them failed to load."""

    help = (
        "List the servers that were found, why others failed to load (exit status 1, --traceback shows where), "
        "and what is probably meant to be a server but is not found as one."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")

    def handle(self, *args: Any, **options: Any) -> None:
        registry = GatewayConfig.current().registry
        found = [
            *((server.name, "loaded", server.folder, _origin(server)) for server in registry),
            *((failure.name, "failed", failure.folder, failure.reason) for failure in registry.failures),
            *((missed.name, "near miss", missed.folder, missed.hint) for missed in registry.near_misses),
        ]
        rows = [
            {"name": name, "status": status, "folder": str(folder), "reason": reason}
            for name, status, folder, reason in found
        ]
        tracebacks = {failure.name: failure.traceback for failure in registry.failures if failure.traceback}
        if options["json"]:
            if options["traceback"]:
                rows = [{**row, "traceback": tracebacks.get(row["name"], "")} for row in rows]
            self.stdout.write(json.dumps(rows, indent=2))
        else:
            self._write_table(rows)
            for name, text in tracebacks.items() if options["traceback"] else ():
                self.stdout.write(f"\n{name}: {text.rstrip()}")
        if registry.failures:
            raise SystemExit(1)

    def _write_table(self, rows: list[dict[str, str]]) -> None:
        columns = ["name", "status", "folder", "reason"]
        widths = {column: max([len(column), *(len(row[column]) for row in rows)]) for column in columns}
        self.stdout.write("  ".join(column.upper().ljust(widths[column]) for column in columns).rstrip())
        for row in rows:
            self.stdout.write("  ".join(row[column].ljust(widths[column]) for column in columns).rstrip())
        servers = [row for row in rows if row["status"] != "near miss"]
        self.stdout.write(f"{sum(row['status'] == 'loaded' for row in servers)} of {len(servers)} loaded")


def _origin(server: ServerDefinition) -> str:
    """The command line or URL of a server that is not Python code in the host, without secrets, and what is wrong."""
    if server.source is None:
        return ""
    warning = server.source.warning()
    return f"{server.source.kind}: {server.source.summary}" + (f" (cannot be used yet: {warning})" if warning else "")
