"""`manage.py restore FILE`: put a host back as it was when `manage.py backup` wrote the file."""

import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection
from django.utils import timezone

from gateway.conf import conf
from gateway.management.backups import DATABASE, SECRET_KEY, Backup, BackupError, unpack
from gateway.management.embedded import require_embedded_database
from gateway.records.processes import running_hosts


class Command(BaseCommand):
    """Checks the file first. What was there before is moved into a folder beside it, not deleted."""

    help = "Replace the embedded database and the secret key by those of a backup. The host must not be running."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="what `manage.py backup` has written")
        parser.add_argument("--check", action="store_true", help="only check the file, and change nothing")
        parser.add_argument("--replace", action="store_true", help="replace a database that exists")

    def handle(self, *args: Any, **options: Any) -> None:
        database = require_embedded_database('To restore it: pg_restore --clean --dbname="$DATABASE_URL" gumcp.dump')
        # In the same folder, so that moving a file is one step.
        with tempfile.TemporaryDirectory(prefix="restore-", dir=database.parent) as folder:
            try:
                backup = unpack(options["file"], Path(folder))
            except BackupError as error:
                raise CommandError(str(error)) from None
            self.stdout.write(f"{options['file']} is whole: {backup.summary}.")
            if options["check"]:
                return
            if database.exists():
                if not options["replace"]:
                    raise CommandError(f"There is a database at {database}. Use --replace to replace it.")
                _require_no_host()
            connection.close()
            self._put_in_place(backup, Path(folder), database)
        # A backup of an older version gets the tables of this one.
        call_command("migrate", verbosity=0, interactive=False)
        self.stdout.write("Restored. Server folders and settings (.env) are not part of a backup.")
        if backup.has_secret_key and conf.secret_key:
            self.stdout.write("GUMCP_SECRET_KEY is set, so it is used and not the secret key of the backup.")

    def _put_in_place(self, backup: Backup, folder: Path, database: Path) -> None:
        key = conf.data_dir / SECRET_KEY
        moving = [database, *(database.with_name(f"{database.name}-{end}") for end in ("wal", "shm"))]
        if backup.has_secret_key:
            moving.append(key)
        if any(path.exists() for path in moving):
            kept = database.with_name(f"before-restore-{timezone.now():%Y%m%d-%H%M%S}")
            kept.mkdir(mode=0o700)
            for path in moving:
                if path.exists():
                    path.rename(kept / path.name)
            self.stdout.write(f"What was there before is in {kept}.")
        if backup.has_secret_key:
            (folder / SECRET_KEY).rename(key)
        (folder / DATABASE).rename(database)


def _require_no_host() -> None:
    try:
        hosts = [str(host) for host in running_hosts()]
    except DatabaseError:  # a database that cannot be read has no host that could be lost
        return
    if hosts:
        raise CommandError(f"A host runs with this database ({', '.join(hosts)}). Stop it first, and wait ten seconds.")
