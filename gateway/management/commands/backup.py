"""`manage.py backup FILE`: the database and the secret key of a host, which may be serving, in one file."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gateway.conf import conf
from gateway.management.backups import SECRET_KEY, BackupError, write_backup
from gateway.management.embedded import require_embedded_database


class Command(BaseCommand):
    """Writes the file and says what is in it."""

    help = "Write the embedded database and the secret key to a file. The host may be serving meanwhile."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="a file that does not exist yet, such as gumcp-2026-01-31.tar.gz")

    def handle(self, *args: Any, **options: Any) -> None:
        database = require_embedded_database(
            'To back it up: pg_dump --format=custom --file=gumcp.dump --dbname="$DATABASE_URL"'
        )
        kept_key = conf.data_dir / SECRET_KEY
        key = kept_key if not conf.secret_key and kept_key.is_file() else None
        try:
            backup = write_backup(database, key, options["file"])
        except BackupError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"Wrote {options['file']}: {backup.summary}.")
        self.stdout.write("Server folders and settings (.env) are not in it. Keep the file as safe as a password.")
        if key is None:
            self.stdout.write("The secret key is the setting GUMCP_SECRET_KEY: keep that too.")
