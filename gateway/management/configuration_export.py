"""What `manage.py export_config` writes: the rows that say how the host is to run and who may do what."""

from collections.abc import Iterable
from typing import Any, Final, TypeVar

from django.contrib.auth.models import Group, Permission, User
from django.utils import timezone
from pydantic import ValidationError

from gateway import __version__
from gateway.access.models import ApiKey
from gateway.alerts.models import AlertDestination
from gateway.management.configuration_file import (
    AlertEntry,
    Configuration,
    ConfigurationError,
    Entry,
    GroupEntry,
    KeyEntry,
    ServerEntry,
    UserEntry,
    sentence,
)
from gateway.records.models import ServerRecord

E = TypeVar("E", bound=Entry)

_ABSENT: Final = (ServerRecord.Status.REMOVED, ServerRecord.Status.NEAR_MISS)
"""What a row says of a folder that is not a server now."""


def exported() -> Configuration:
    """The configuration of this database. Everything is sorted, so that two exports can be compared line by line.

    Raises:
        ConfigurationError: a row has something that no file may have.
    """
    groups = Group.objects.order_by("name").prefetch_related("permissions__content_type")
    users = User.objects.order_by("username").prefetch_related("groups", "user_permissions__content_type")
    keys = ApiKey.objects.filter(revoked_at=None).order_by("public").select_related("user")
    return Configuration(
        gumcp=__version__,
        exported_at=timezone.now().isoformat(timespec="seconds"),
        servers=_servers(),
        groups=[
            _entry(GroupEntry, name=group.name, permissions=permission_names(group.permissions.all()))
            for group in groups
        ],
        users=[
            _entry(
                UserEntry,
                username=user.username,
                is_active=user.is_active,
                is_staff=user.is_staff,
                is_superuser=user.is_superuser,
                groups=sorted(group.name for group in user.groups.all()),
                permissions=permission_names(user.user_permissions.all()),
            )
            for user in users
        ],
        keys=[
            _entry(
                KeyEntry,
                public=key.public,
                user=key.user.username,
                label=key.label,
                scope=key.scope,
                expires_at=key.expires_at,
            )
            for key in keys
        ],
        alert_destinations=[alert_entry(row) for row in AlertDestination.objects.order_by("name")],
    )


def server_entry(row: ServerRecord) -> ServerEntry:
    """How a server is to run."""
    return _entry(ServerEntry, **{field: getattr(row, field) for field in ServerEntry.model_fields})


def alert_entry(row: AlertDestination) -> AlertEntry:
    """Who is told of alerts."""
    values = {field: getattr(row, field) for field in AlertEntry.model_fields}
    return _entry(AlertEntry, **{**values, "events": sorted(row.events)})


def permission_names(permissions: Iterable[Permission]) -> list[str]:
    """Permissions by the names that Django's code knows them by, sorted."""
    return sorted(f"{found.content_type.app_label}.{found.codename}" for found in permissions)


def rows_by_name() -> dict[str, list[ServerRecord]]:
    """The rows of servers, the one that counts last: one name may stand for folders of several machines."""
    found: dict[str, list[ServerRecord]] = {}
    rows = ServerRecord.objects.order_by("name")
    for row in sorted(rows, key=lambda row: (row.status not in _ABSENT, row.loaded_at)):
        found.setdefault(row.name, []).append(row)
    return found


def _servers() -> list[ServerEntry]:
    entries = [(server_entry(rows[-1]), rows[-1].status) for _, rows in sorted(rows_by_name().items())]
    # Of servers whose folders are gone, only what somebody has set is worth keeping.
    return [entry for entry, status in entries if status not in _ABSENT or not entry.is_default]


def _entry(entry: type[E], /, **values: Any) -> E:
    try:
        return entry(**values)
    except ValidationError as error:
        name = next(iter(values.values()))
        raise ConfigurationError(f"The row of {name!r} cannot be exported: {sentence(error)}") from None
