"""`manage.py prepare_servers`: make the environments of folders that run in processes with packages of their own."""

import subprocess
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gateway.catalog.discovery import server_folders
from gateway.catalog.manifests import ENVIRONMENTS, needs_environment
from gateway.conf import conf
from gateway.upstreams.isolation import prepare
from gateway.upstreams.manifest import ManifestError

SHOWN_LINES = 5
"""How many of an installer's last lines are shown where it fails."""


class Command(BaseCommand):
    """Installs the `requirements.txt` of every isolated folder, or of those that are named."""

    help = "Install the requirements.txt of isolated server folders into environments of their own."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="servers; without any: all that need it")

    def handle(self, *args: Any, **options: Any) -> None:
        folders = [folder for server_dir in conf.server_dirs for folder in server_folders(server_dir)]
        wanted = set(options["names"])
        if missing := wanted - {folder.name for folder in folders}:
            raise CommandError(f"There is no server called {', '.join(sorted(missing))}.")
        failed: list[str] = []
        ready = 0
        for folder in folders:
            if wanted and folder.name not in wanted:
                continue
            try:
                if not needs_environment(folder):
                    if wanted:
                        self.stdout.write(f"{folder.name}: needs no environment (isolation: process, requirements.txt)")
                    continue
                environment = prepare(folder, Path(conf.data_dir) / ENVIRONMENTS)
            except ManifestError as error:
                failed.append(f"{folder.name}: {error}")
            except subprocess.CalledProcessError as error:
                lines = (error.stderr or error.stdout or "").strip().splitlines()[-SHOWN_LINES:]
                failed.append("\n  ".join([f"{folder.name}: its requirements could not be installed:", *lines]))
            else:
                ready += 1
                self.stdout.write(f"{folder.name}: ready in {environment}")
        if failed:
            raise CommandError("\n".join(failed))
        if not ready and not wanted:
            self.stdout.write("No server needs an environment of its own (isolation: process, and a requirements.txt).")
