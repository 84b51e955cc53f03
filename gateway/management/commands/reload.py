"""`manage.py reload`: have running hosts serve new folders, drop removed ones, and reload servers."""

import time
from argparse import ArgumentParser
from collections.abc import Collection
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q

from gateway.conf import conf
from gateway.management.tables import needing_tables
from gateway.records.models import ServerRecord
from gateway.records.processes import running_hosts
from gateway.records.reload_requests import hosts_that_have_not, request_reload

_LOOK_SECONDS: Final = 0.2
"""How often the command looks whether the hosts have finished."""

_MARGIN_SECONDS: Final = 30.0
"""How long the hosts may take beyond the time that loading one server may take."""

_SERVED: Final = (ServerRecord.Status.LOADED, ServerRecord.Status.FAILED)

_State = tuple[str, str]
"""The status of a server and the reason for it."""

_NOTHING: Final = (str(ServerRecord.Status.REMOVED), "")


class Command(BaseCommand):
    """Prints what has changed, and exits with 1 if a server that was asked for, or a new one, does not load."""

    help = (
        "Have the running hosts of this database look for new and removed server folders, try again those that failed "
        "to load, and reload the named servers."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="a server to reload")
        parser.add_argument("--all", action="store_true", help="reload all servers")

    def handle(self, *args: Any, **options: Any) -> None:
        names = set(options["names"])
        with needing_tables():
            hosts = set(running_hosts().values_list("id", flat=True))
            if not hosts:
                raise CommandError(
                    "No host runs with this database. A host looks for folders when it starts: `manage.py serve`."
                )
            before = _states()
            rows = ServerRecord.objects.filter(status__in=_SERVED)
            if not options["all"]:
                rows = rows.filter(Q(name__in=names) | ~Q(reason=""))
            self._wait_for(hosts, request_reload(rows))
            after = _states()
        self._report(names, before, after)

    def _wait_for(self, hosts: Collection[UUID], request: datetime) -> None:
        limit_seconds = (conf.load_timeout_seconds or 0) + _MARGIN_SECONDS
        end = time.monotonic() + limit_seconds
        while hosts_that_have_not(request, hosts).exists():
            if time.monotonic() > end:
                raise CommandError(f"The host has not finished after {limit_seconds:g} seconds. Its log says why.")
            time.sleep(_LOOK_SECONDS)

    def _report(self, names: set[str], before: dict[str, _State], after: dict[str, _State]) -> None:
        lines: list[str] = []
        is_failed = False
        for name in sorted(before.keys() | after.keys() | names):
            old, new = before.get(name, _NOTHING), after.get(name, _NOTHING)
            if new != old or name in names:
                lines.append(f"{name}: {_sentence(*new, is_new=old == _NOTHING)}")
                is_served = new == (ServerRecord.Status.LOADED, "")
                is_failed = is_failed or (not is_served and (name in names or new[0] in _SERVED))
        served = sum(status == ServerRecord.Status.LOADED for status, _ in after.values())
        self.stdout.write("\n".join(lines) or f"Nothing has changed: {served} servers.")
        if is_failed:
            raise SystemExit(1)


def _states() -> dict[str, _State]:
    """The servers by name. Of two folders with one name the one that is served counts."""
    rows = sorted(
        ServerRecord.objects.exclude(status=ServerRecord.Status.REMOVED),
        key=lambda row: row.status == ServerRecord.Status.LOADED,
    )
    return {row.name: (row.status, row.reason) for row in rows}


def _sentence(status: str, reason: str, *, is_new: bool) -> str:
    if status == ServerRecord.Status.REMOVED:
        return "there is no folder of this name with a main.py or server.json"
    if status == ServerRecord.Status.LOADED:
        if reason:
            return f"its new code does not load, the old one is still served. {reason}"
        return "served" if is_new else "reloaded"
    return f"not served. {reason}"
