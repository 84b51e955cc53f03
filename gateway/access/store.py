"""The rows of keys, as the door needs them. Synchronous: called from threads that may wait, never on an event loop.

Not here: what is kept in memory (`authenticator`), when rows are read again (`key_watch`), who may do what (`admin`).
"""

import logging
import threading
import time
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

logger = logging.getLogger(__name__)

BATCH: Final = 500
"""Keys that one query asks for: SQLite takes 999 parameters where it is old."""

CONNECTION_SECONDS: Final = 1.0
"""How old a connection to a file may become. With a round of the watch it stays under what a revocation may take."""

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
    """Reads and writes keys on behalf of the door."""

    def __init__(self) -> None:
        self._unusable: dict[int, str] = {}
        """Key id -> what is wrong with its row: each is logged once, not twice a second."""
        self._of_thread = threading.local()

    def look_up(self, public: str) -> KeyFacts | None:
        """The key with this public part. Raises `django.db.DatabaseError`."""
        try:
            row = ApiKey.objects.filter(public=public).values_list(*_COLUMNS).first()
        except OperationalError:
            # A connection that the database has closed since the last look-up; a second failure is no such thing.
            connection.close()
            row = ApiKey.objects.filter(public=public).values_list(*_COLUMNS).first()
        return None if row is None else self._facts(row)

    def read(self, key_ids: Iterable[int]) -> dict[int, KeyFacts]:
        """The keys with these ids, as far as there are any. Raises `django.db.DatabaseError`."""
        ids = list(key_ids)
        found: dict[int, KeyFacts] = {}
        for start in range(0, len(ids), BATCH):
            rows = ApiKey.objects.filter(id__in=ids[start : start + BATCH]).values_list(*_COLUMNS)
            found.update((row[0], self._facts(row)) for row in rows)
        return found

    def write_uses(self, last_used: Mapping[int, float]) -> None:
        """Note when keys were last used: key id -> seconds since the epoch, kept to the minute."""
        if last_used:
            rows = [
                ApiKey(id=key_id, last_used_at=datetime.fromtimestamp(seconds // 60 * 60, UTC))
                for key_id, seconds in last_used.items()
            ]
            ApiKey.objects.bulk_update(rows, ["last_used_at"], batch_size=200)

    def renew(self) -> None:
        """Connect anew once this thread's connection is old, if it is to a file.

        A file that was deleted or replaced is read without an error as long as it stays open.
        """
        if connection.vendor != "sqlite":
            return
        now = time.monotonic()
        if now - getattr(self._of_thread, "connected_at", float("-inf")) >= CONNECTION_SECONDS:
            connection.close()
            self._of_thread.connected_at = now

    def disconnect(self) -> None:
        """Close this thread's connection; the next query opens another."""
        connection.close()

    def _facts(self, row: tuple[Any, ...]) -> KeyFacts:
        key_id, public, digest, username, scope, expires_at, revoked_at, is_user_active = row
        is_active = revoked_at is None and is_user_active
        servers: AllowedTools | None = {}
        try:
            # A user may have been renamed, a scope written past the admin: what cannot be read allows nothing.
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
    """Make a key for `user`. The text of the key is in the second value and nowhere else.

    Raises:
        django.core.exceptions.ValidationError: the user's name cannot be a user id, or the scope has no such form.
    """
    new = make_key()
    row = ApiKey(user=user, public=new.public, digest=new.digest, label=label, scope=scope, expires_at=expires_at)
    row.full_clean(exclude=["public", "digest"])
    row.save()
    return row, new


def revoke_keys(keys: Iterable[ApiKey]) -> list[ApiKey]:
    """Revoke keys for good; returns those that were not revoked before."""
    with transaction.atomic():
        revoked = list(ApiKey.objects.filter(id__in=[key.pk for key in keys], revoked_at=None))
        ApiKey.objects.filter(id__in=[key.pk for key in revoked]).update(revoked_at=timezone.now())
    return revoked
