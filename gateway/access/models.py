"""The rows of keys, of the audit log and of refusals. No row has the text of a key, only its digest and public part."""

import json
from datetime import UTC
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from gateway.access.grants import AllowedTools
from gateway.access.identity import parse_user_id
from gateway.exceptions import InvalidSessionKey
from gateway.printable import is_printable, printable

RESERVED_USER_ID: Final = "messages"
"""No user with a key may have this name: clients with a bearer key post to `/{server_name}/messages`."""

ACTOR_LENGTH: Final = 200
"""Longest name of an operator in the audit log, in characters."""

MAX_SUBJECT_LENGTH: Final = 200
"""Longest subject of a limit, in characters."""


class ApiKey(models.Model):
    """A key that a user calls with."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        related_name="api_keys",
        help_text="The owner of the key. The user's name is the user_id in URLs.",
    )
    public = models.CharField("key", max_length=32, unique=True, editable=False)
    digest = models.BinaryField(max_length=32, editable=False)
    label = models.CharField(max_length=100, blank=True, help_text="What the key is for, such as a device or a client.")
    scope = models.JSONField(
        "allowed servers",
        null=True,
        blank=True,
        help_text=(
            'Empty: every server. Otherwise such as {"time": null, "notes": ["read-note"]}: '
            "the allowed servers, each with its allowed tools, or null for all tools."
        ),
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Empty: the key does not expire.")
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="To the minute. Written with a delay of up to a minute."
    )

    class Meta:
        default_permissions = ("add", "change", "view")
        permissions = [
            ("revoke_apikey", "Can revoke a key"),
            ("run_as", "Can use servers as any user, in the playground"),
        ]
        verbose_name = "API key"
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return printable(f"{self.public}… {self.label}".strip())

    def clean(self) -> None:
        """Check that the user's name can be a user id, and that label and scope are well-formed."""
        if not is_printable(self.label):
            raise ValidationError("The label must not contain line breaks or other control or format characters.")
        if self.user_id is not None:
            require_usable_name(self.user.get_username())
        read_scope(self.scope)

    @property
    def terms(self) -> str:
        """Where and until when the key may be used, for the audit log."""
        scope = "every server" if self.scope is None else json.dumps(self.scope)
        if self.expires_at is None:
            return scope
        # The expiry comes first, because a long scope is cut.
        return f"until {self.expires_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC, {scope}"

    @property
    def state(self) -> str:
        """Whether the key can be used: valid, revoked, expired, or another reason why not."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= timezone.now():
            return "expired"
        if not self.user.is_active:
            return "user disabled"
        try:
            self.clean()
        except ValidationError:
            return "unusable user name or scope"
        return "valid"


class AuditEvent(models.Model):
    """Something that an operator did. Written once, never changed."""

    at = models.DateTimeField(default=timezone.now, db_index=True)
    actor = models.CharField(max_length=ACTOR_LENGTH, help_text="The operator's name, or the command that was run.")
    action = models.CharField(max_length=50, db_index=True)
    target = models.CharField(max_length=300)
    detail = models.CharField(max_length=500, blank=True)
    address = models.CharField(max_length=200, blank=True)

    class Meta:
        default_permissions = ("view",)
        ordering = ["-at", "-id"]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.actor}: {self.action} {self.target}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write the event; only once."""
        if self.pk is not None:
            raise TypeError("Audit events are not changed.")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the audit log is kept."""
        raise TypeError("Audit events are not deleted.")


class LimitHit(models.Model):
    """A key or an address that a limit has refused: how often, and when."""

    rule = models.CharField("limit", max_length=50)
    subject = models.CharField("key or address", max_length=MAX_SUBJECT_LENGTH)
    count = models.PositiveBigIntegerField("refused", default=0)
    first_at = models.DateTimeField()
    last_at = models.DateTimeField(db_index=True)

    class Meta:
        default_permissions = ("view",)
        constraints = [models.UniqueConstraint(fields=["rule", "subject"], name="one_row_per_limit_and_subject")]
        ordering = ["-last_at"]

    def __str__(self) -> str:
        return f"{self.rule}: {self.subject}"


def require_usable_name(username: str) -> None:
    """Check that `username` can stand in a URL as the user id.

    Raises:
        ValidationError
    """
    try:
        parse_user_id(username)
    except InvalidSessionKey as error:
        raise ValidationError(f"This user cannot have a key: {error}") from None
    if ":" in username or username == RESERVED_USER_ID:
        raise ValidationError("This user cannot have a key: its name has a colon, or is the reserved word 'messages'.")


def read_scope(scope: Any) -> AllowedTools | None:
    """The servers and tools in the scope of a row.

    Raises:
        ValidationError: the scope is malformed.
    """
    if scope is None:
        return None
    message = 'Write the scope as an object of server names, each with a list of tools or null: {"time": null}.'
    if not isinstance(scope, dict) or not scope:
        raise ValidationError(message)
    allowed: dict[str, frozenset[str] | None] = {}
    for server_name, tools in scope.items():
        if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, str) for tool in tools)):
            raise ValidationError(message)
        if not all(is_printable(name) for name in (server_name, *(tools or ()))):
            raise ValidationError("The scope must not contain control or format characters.")
        allowed[server_name] = None if tools is None else frozenset(tools)
    return allowed
