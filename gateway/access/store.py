"""Reads and writes the rows of keys. Synchronous: for threads that may wait, never for an event loop.

Not here: the keys in memory (`known_keys`), when rows are read again (`key_watch`), the admin pages (`admin`).
"""

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from gateway.access.grants import AllowedTools, KeyFacts
from gateway.access.keys import NewKey, make_key
from gateway.access.models import ApiKey, read_scope, require_usable_name
from gateway.database_thread import FileRenewal

logger = logging.getLogger(__name__)

BATCH: Final = 500
"""How many keys one query asks for: old versions of SQLite accept 999 parameters."""

CONNECTION_SECONDS: Final = 1.0
"""How long a connection to a file is used. Together with a round of the watch this is less than two seconds, the time
in which a revoked key must be refused."""

_COLUMNS: Final = (
    "id",
    "public",
    "digest",
    "user__username",
    "scope",
    "expires_at",
    "revoked_at",
    "user__is_active",
)


class KeyStore:
    """The keys in the database. May be used from several threads, each with its own connection."""

    def __init__(self) -> None:
        self._unusable: dict[int, str] = {}
        """Key id -> what is wrong with its row. Each is logged once, not at every round of the watch."""
        self._file_renewal = FileRenewal(CONNECTION_SECONDS)

    def look_up(self, public: str) -> KeyFacts | None:
        """The key with this public part. Raises `django.db.DatabaseError`."""
        try:
            row = ApiKey.objects.filter(public=public).values_list(*_COLUMNS).first()
        except OperationalError:
            # The database may have closed the connection since the last look-up. A second failure has another cause.
            connection.close()
            row = ApiKey.objects.filter(public=public).values_list(*_COLUMNS).first()
        return None if row is None else self._facts(row)

    def read(self, key_ids: Iterable[int]) -> dict[int, KeyFacts]:
        """The keys with these ids, without those that do not exist. Raises `django.db.DatabaseError`."""
        ids = list(key_ids)
        found: dict[int, KeyFacts] = {}
        for start in range(0, len(ids), BATCH):
            rows = ApiKey.objects.filter(id__in=ids[start : start + BATCH]).values_list(*_COLUMNS)
            found.update((row[0], self._facts(row)) for row in rows)
        return found

    def write_uses(self, last_used: Mapping[int, float]) -> None:
        """Write when keys were last used (key id -> seconds since the epoch), to the minute."""
        if last_used:
            rows = [
                ApiKey(id=key_id, last_used_at=datetime.fromtimestamp(seconds // 60 * 60, UTC))
                for key_id, seconds in last_used.items()
            ]
            ApiKey.objects.bulk_update(rows, ["last_used_at"], batch_size=200)

    def renew(self) -> None:
        """Make sure that this thread's connection leads to the database file that is there now."""
        self._file_renewal.renew()

    def disconnect(self) -> None:
        """Close this thread's connection; the next query opens another."""
        connection.close()

    def _facts(self, row: tuple[Any, ...]) -> KeyFacts:
        key_id, public, digest, username, scope, expires_at, revoked_at, is_user_active = row
        is_active = revoked_at is None and is_user_active
        servers: AllowedTools | None = {}
        try:
            # A user may have been renamed, or a scope written without the admin. What cannot be read allows nothing.
            require_usable_name(username)
            servers = read_scope(scope)
        except ValidationError as error:
            self._note_unusable(key_id, public, " ".join(error.messages))
            is_active = False
        else:
            self._unusable.pop(key_id, None)
        return KeyFacts(
            key_id=key_id,
            public=public,
            digest=bytes(digest),
            user_id=username,
            servers=servers,
            expires_at=expires_at,
            is_active=is_active,
        )

    def _note_unusable(self, key_id: int, public: str, reason: str) -> None:
        if self._unusable.get(key_id) != reason:
            self._unusable[key_id] = reason
            logger.warning("The key %s is refused: %s", public, reason)


def issue_key(
    user: User,
    *,
    label: str = "",
    scope: dict[str, list[str] | None] | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, NewKey]:
    """Issue a key for `user`. The second value has the text of the key; nothing else keeps it.

    Raises:
        django.core.exceptions.ValidationError: the user's name cannot be a user id, or the scope is malformed.
    """
    new = make_key()
    row = ApiKey(user=user, public=new.public, digest=new.digest, label=label, scope=scope, expires_at=expires_at)
    row.full_clean(exclude=["public", "digest"])
    row.save()
    return row, new


def revoke_keys(keys: Iterable[ApiKey]) -> list[ApiKey]:
    """Revoke keys. This cannot be undone. Returns the keys that were not revoked before."""
    with transaction.atomic():
        revoked = list(ApiKey.objects.filter(id__in=[key.pk for key in keys], revoked_at=None))
        ApiKey.objects.filter(id__in=[key.pk for key in revoked]).update(revoked_at=timezone.now())
    return revoked
