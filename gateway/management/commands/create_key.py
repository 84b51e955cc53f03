"""`manage.py create_key USER`: issue a key. It is shown once, on standard output."""

import json
from argparse import ArgumentParser
from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.db import transaction
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from gateway.access import audit
from gateway.access.models import require_usable_name
from gateway.access.store import issue_key
from gateway.conf import conf
from gateway.conf.kinds import Duration
from gateway.management.base import LoadingCommand
from gateway.management.tables import needing_tables


class Command(LoadingCommand):
    """Prints the key alone on standard output, so that it can be piped. Everything else goes to standard error."""

    help = "Issue a key for a user. It is shown once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("user", help="the user's name, which is the user_id in URLs. A new user is made if needed")
        parser.add_argument("--label", default="", help="what the key is for")
        parser.add_argument("--expires", metavar="WHEN", help="a duration (30d, 12h), a date, or a date and time")
        parser.add_argument("--servers", metavar="NAMES", help="comma-separated: the only servers that it is for")
        parser.add_argument(
            "--tools",
            metavar="NAMES",
            help="comma-separated SERVER:TOOL: of these servers the only tools that it may call",
        )
        parser.add_argument("--json", action="store_true", help="print a JSON object instead of the key alone")

    def handle(self, *args: Any, **options: Any) -> None:
        scope = _scope(options["servers"], options["tools"])
        expires_at = _moment(options["expires"])
        try:
            require_usable_name(options["user"])
            with needing_tables(), transaction.atomic():
                user, is_new = User.objects.get_or_create(username=options["user"])
                if is_new:
                    # The name of a caller, not a login.
                    user.set_unusable_password()
                    user.save()
                row, new = issue_key(user, label=options["label"], scope=scope, expires_at=expires_at)
                audit.record(audit.KEY_ISSUED, str(row), command="manage.py create_key", detail=row.terms)
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from None
        if is_new:
            self.stderr.write(f"Made the user {user.username}.")
        if options["json"]:
            facts = {"key": new.text, "user": user.username, "public": new.public, "id": row.pk}
            self.stdout.write(json.dumps(facts))
        else:
            self.stderr.write(f"A key for {user.username}. It is shown only now:")
            self.stdout.write(new.text)
            server = next(iter(scope)) if scope and len(scope) == 1 else "SERVER"
            self.stderr.write(
                f"Clients send it as `Authorization: Bearer KEY` to {conf.base_url}/{server}, or use the URL "
                f"{conf.base_url}/{server}/{user.username}:KEY."
            )
            if not conf.public_url:
                self.stderr.write(
                    "The address is that of the settings in this shell. If the host has others, use the one that it "
                    "printed when it started."
                )
        if scope:
            # Imported here: it imports the SDK.
            from gateway.management.scope_warnings import scope_warnings

            for warning in scope_warnings(scope, user.username):
                self.stderr.write(self.style.WARNING(f"Warning: {warning}"))


def _scope(servers: str | None, tools: str | None) -> dict[str, list[str] | None] | None:
    """Return where the key may be used. None means everywhere, and only if neither option was given."""
    scope: dict[str, list[str] | None] = dict.fromkeys(_names("--servers", servers))
    for pair in _names("--tools", tools):
        server_name, _, tool = pair.partition(":")
        if not (server_name and tool):
            raise CommandError(f"Write a tool as SERVER:TOOL, not {pair}.")
        if scope.get(server_name) is None:
            scope[server_name] = []
        scope[server_name] = [*(scope[server_name] or []), tool]
    return scope or None


def _names(option: str, text: str | None) -> list[str]:
    if text is None:
        return []
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        # Such as from a shell variable that is not set. The key must never be able to do more than was meant.
        raise CommandError(f"{option} names nothing. Leave it out for a key without this restriction.")
    return names


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        seconds = _seconds(text)
        if seconds is not None:
            moment = timezone.now() + timedelta(seconds=seconds)
        else:
            parsed = parse_datetime(text) if len(text) > len("2026-01-31") else datetime.fromisoformat(text)
            if parsed is None:
                raise ValueError
            moment = parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        if not text.strip():
            raise CommandError("--expires is empty. Leave it out for a key that does not expire.") from None
        raise CommandError(
            f"--expires must be a duration such as 30d or 12h, a date, or a date and time such as "
            f"2026-12-31T18:00+01:00 (got {text!r})."
        ) from None
    if moment <= timezone.now():
        raise CommandError("--expires is in the past.")
    return moment


def _seconds(text: str) -> float | None:
    """The length of a duration such as 30d or 1h30m; None for anything else, and for a number without a unit."""
    if not text[-1:].isalpha():
        return None
    try:
        return Duration().parse(text)
    except ValueError:
        return None
