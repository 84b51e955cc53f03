"""What `manage.py import_config` changes: a file is compared with the rows, and the differences are written.

Rows that the file does not name are left alone. What this database cannot take, such as a key whose text nobody has, is
refused with the reason, and the rest is written.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from django.contrib.auth.models import Group, Permission, User
from django.core.exceptions import ValidationError
from django.db import transaction

from gateway.access import audit
from gateway.access.models import ApiKey
from gateway.alerts.models import AlertDestination
from gateway.management.configuration_export import alert_entry, permission_names, rows_by_name, server_entry
from gateway.management.configuration_file import (
    AlertEntry,
    Configuration,
    ConfigurationError,
    GroupEntry,
    KeyEntry,
    ServerEntry,
    UserEntry,
)
from gateway.operator_commands import send_keys_changed
from gateway.records.models import ServerRecord

COMMAND = "manage.py import_config"

Kind = Literal["server", "group", "user", "key", "alert"]
Outcome = Literal["added", "changed", "unchanged", "refused"]


@dataclass(frozen=True)
class Change:
    """What an import does with one entry of the file."""

    kind: Kind
    name: str
    outcome: Outcome
    detail: str = ""
    """The fields that change, or why the entry is refused."""
    write: Callable[[], object] | None = None
    """Writes it. None if there is nothing to write."""


def import_configuration(configuration: Configuration, *, is_dry_run: bool) -> list[Change]:
    """Bring the rows to what the file says, all of them or none, and record it in the audit log.

    A dry run does the same and takes it back. Returns what is done with each entry, in the order of the file.

    Raises:
        ConfigurationError: the file asks for what cannot be. Nothing is written.
    """
    with transaction.atomic():
        permissions = _Permissions()
        changes = [
            *_servers(configuration.servers),
            *_groups(configuration.groups, permissions),
            *_users(configuration.users, permissions, {group.name for group in configuration.groups}),
            *_keys(configuration.keys),
            *_alerts(configuration.alert_destinations),
        ]
        had_superuser = _has_superuser()
        for change in changes:
            if change.write is not None:
                change.write()
        if had_superuser and not _has_superuser():
            raise ConfigurationError("The file would leave no active superuser. Nothing is written.")
        if is_dry_run:
            transaction.set_rollback(True)
            return changes
        for change in changes:
            if change.write is not None:
                _record(change)
        transaction.on_commit(send_keys_changed)
    return changes


def _record(change: Change) -> None:
    action = audit.KEY_CHANGED if change.kind == "key" else f"{change.kind} {change.outcome}"
    audit.record(action, change.name, command=COMMAND, detail=change.detail)


def _has_superuser() -> bool:
    return User.objects.filter(is_superuser=True, is_active=True).exists()


def _servers(entries: Iterable[ServerEntry]) -> Iterable[Change]:
    known = rows_by_name()
    for entry in entries:
        rows = known.get(entry.name)
        if rows is None:
            if entry.is_default:
                yield Change("server", entry.name, "unchanged", "not known here, and nothing is set for it")
            else:
                yield Change(
                    "server",
                    entry.name,
                    "refused",
                    "no host of this database has found a server of this name. Start one, then import again",
                )
            continue
        changed, detail = _differences(server_entry(rows[-1]).model_dump(), entry.values())
        yield Change("server", entry.name, *_outcome(detail), _write_servers(entry.name, changed) if changed else None)


def _write_servers(name: str, changed: Mapping[str, Any]) -> Callable[[], object]:
    # All rows of the name: which of them counts depends on which machine serves it.
    return lambda: ServerRecord.objects.filter(name=name).update(**changed)


def _groups(entries: Iterable[GroupEntry], permissions: "_Permissions") -> Iterable[Change]:
    known = {group.name: group for group in Group.objects.prefetch_related("permissions__content_type")}
    for entry in entries:
        wanted = permissions.named(entry.permissions, f"the group {entry.name}")
        group = known.get(entry.name)
        old = {"permissions": [] if group is None else permission_names(group.permissions.all())}
        _, detail = _differences(old, _sorted(entry.values()))

        def write(name: str = entry.name, wanted: list[Permission] = wanted) -> None:
            row, _ = Group.objects.get_or_create(name=name)
            row.permissions.set(wanted)

        if group is None:
            yield Change("group", entry.name, "added", detail, write)
        else:
            yield Change("group", entry.name, *_outcome(detail), write if detail else None)


def _users(entries: Iterable[UserEntry], permissions: "_Permissions", new_groups: set[str]) -> Iterable[Change]:
    known = {user.username: user for user in User.objects.prefetch_related("groups", "user_permissions__content_type")}
    groups = new_groups | set(Group.objects.values_list("name", flat=True))
    for entry in entries:
        wanted = permissions.named(entry.permissions, f"the user {entry.username}")
        if missing := sorted(set(entry.groups) - groups):
            raise ConfigurationError(f"The user {entry.username} is in the group {missing[0]}, which does not exist.")
        user = known.get(entry.username)
        changed, detail = _differences(_facts(user or User(username=entry.username)), _sorted(entry.values()))
        write = _write_user(entry, changed, wanted)
        if user is None:
            yield Change("user", entry.username, "added", detail, write)
        else:
            yield Change("user", entry.username, *_outcome(detail), write if detail else None)


def _facts(user: User) -> dict[str, Any]:
    """What a file says of a user, from the row. A user without a primary key has no groups."""
    is_new = user.pk is None
    return {
        "is_active": user.is_active,
        "is_staff": user.is_staff,
        "is_superuser": user.is_superuser,
        "groups": [] if is_new else sorted(group.name for group in user.groups.all()),
        "permissions": [] if is_new else permission_names(user.user_permissions.all()),
    }


def _write_user(entry: UserEntry, changed: Mapping[str, Any], permissions: list[Permission]) -> Callable[[], None]:
    def write() -> None:
        user = User.objects.filter(username=entry.username).first()
        if user is None:
            user = User(username=entry.username)
            user.set_unusable_password()
        for field in changed.keys() - {"groups", "permissions"}:
            setattr(user, field, changed[field])
        user.save()
        if "groups" in changed:
            user.groups.set(Group.objects.filter(name__in=entry.groups))
        if "permissions" in changed:
            user.user_permissions.set(permissions)

    return write


def _keys(entries: Iterable[KeyEntry]) -> Iterable[Change]:
    known = {key.public: key for key in ApiKey.objects.select_related("user")}
    for entry in entries:
        key = known.get(entry.public)
        if key is None:
            reason = f"its text is not in the file, so it cannot work here. Issue another: create_key {entry.user}"
        elif key.user.username != entry.user:
            reason = f"here it belongs to {key.user.username}"
        elif key.revoked_at is not None:
            reason = "it was revoked here, which is for good"
        else:
            old = {field: getattr(key, field) for field in ("label", "scope", "expires_at")}
            changed, detail = _differences(old, {**entry.values()})
            yield Change("key", entry.public, *_outcome(detail), _write_key(key, changed) if changed else None)
            continue
        yield Change("key", entry.public, "refused", reason)


def _write_key(key: ApiKey, changed: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(**changed)


def _alerts(entries: Iterable[AlertEntry]) -> Iterable[Change]:
    known = {row.name: row for row in AlertDestination.objects.all()}
    for entry in entries:
        row = known.get(entry.name)
        is_new = row is None
        row = row or AlertDestination(name=entry.name, events=[])
        old = alert_entry(row).model_dump()
        for name, value in _sorted(entry.values()).items():
            setattr(row, name, value)
        try:
            row.full_clean(validate_unique=False)
        except ValidationError as error:
            yield Change("alert", entry.name, "refused", " ".join(error.messages))
            continue
        # Compared as it is written: a check puts addresses into one form.
        changed, _ = _differences(old, alert_entry(row).model_dump())
        # The URL is not shown: it may have a token in it.
        detail = "; ".join(
            "url: another" if name == "url" else _difference(name, old[name], value) for name, value in changed.items()
        )
        if is_new:
            yield Change("alert", entry.name, "added", detail, row.save)
        else:
            yield Change("alert", entry.name, *_outcome(detail), row.save if changed else None)


class _Permissions:
    """The permissions that exist, by name."""

    def __init__(self) -> None:
        self._known = {
            f"{found.content_type.app_label}.{found.codename}": found
            for found in Permission.objects.select_related("content_type")
        }

    def named(self, names: Iterable[str], whose: str) -> list[Permission]:
        """Raises `ConfigurationError` if one of them does not exist."""
        for name in names:
            if name not in self._known:
                raise ConfigurationError(
                    f"{whose[:1].upper()}{whose[1:]} has the permission {name}, which does not exist."
                )
        return [self._known[name] for name in dict.fromkeys(names)]


def _sorted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of names as sorted lists without repetitions."""
    return {name: sorted(set(value)) if isinstance(value, list) else value for name, value in values.items()}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The values of `new` that are others than those of `old`, and a text for people."""
    changed = {name: value for name, value in new.items() if name in old and value != old[name]}
    return changed, "; ".join(_difference(name, old[name], value) for name, value in changed.items())


def _difference(name: str, old: Any, new: Any) -> str:
    if isinstance(old, list) and isinstance(new, list):
        words = [*(f"+{word}" for word in new if word not in old), *(f"-{word}" for word in old if word not in new)]
        return f"{name}: {' '.join(words)}"
    return f"{name}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return "nothing" if value in (None, "") else json.dumps(value, ensure_ascii=False)


def _outcome(detail: str) -> tuple[Outcome, str]:
    return ("changed" if detail else "unchanged", detail)
