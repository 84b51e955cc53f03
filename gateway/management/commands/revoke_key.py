"""`manage.py revoke_key PUBLIC…`: revoke keys, named by their public part."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gateway.access import audit
from gateway.access.keys import public_part
from gateway.access.models import ApiKey
from gateway.access.store import revoke_keys
from gateway.management.tables import needing_tables
from gateway.operator_commands import send_keys_changed


class Command(BaseCommand):
    """Revokes keys. Running hosts refuse them, and close what is open with them, within two seconds."""

    help = "Revoke keys for good."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("keys", nargs="+", metavar="PUBLIC", help="the public part of a key: gumcp_Ab3dE6gH")

    def handle(self, *args: Any, **options: Any) -> None:
        with needing_tables():
            for name in options["keys"]:
                self._revoke(name)
        send_keys_changed()

    def _revoke(self, name: str) -> None:
        row = ApiKey.objects.filter(public=public_part(name)).first() if name.isascii() else None
        if row is None:
            # The message does not repeat it: somebody may have pasted a whole key.
            raise CommandError("There is no key with this public part.")
        if revoke_keys([row]):
            audit.record(audit.KEY_REVOKED, str(row), command="manage.py revoke_key")
        self.stdout.write(f"Revoked {row}")
