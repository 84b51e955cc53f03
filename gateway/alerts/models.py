"""The rows of alerts: their destinations, the alerts themselves, and the messages about them.

The secret that signs a webhook is not stored: it is derived from Django's secret key and the row's salt (`signing`).
"""

import secrets
import uuid
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import models
from django.utils import timezone

from gateway.alerts.troubles import EVENT_LABELS, EVENTS, OF_SERVERS
from gateway.conf import GatewaySettings, conf
from gateway.http.addresses import refused_address
from gateway.printable import is_printable

MAX_ADDRESSES: Final = 20

_PRIVATE_ADDRESSES: Final = "GUMCP_ALERTS_ALLOW_PRIVATE_ADDRESSES"
assert _PRIVATE_ADDRESSES in GatewaySettings.declared()


def make_salt() -> str:
    """A new random part of a destination's signing secret."""
    return secrets.token_hex(16)


def all_events() -> list[str]:
    """The default of `events`: a new destination is told of all."""
    return list(EVENTS)


class AlertDestination(models.Model):
    """A destination of alerts: a webhook, or e-mail addresses."""

    class Kind(models.TextChoices):
        """How it is reached."""

        WEBHOOK = "webhook", "Webhook"
        EMAIL = "email", "E-mail"

    name = models.CharField(max_length=100, unique=True, help_text="What operators call it.")
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.WEBHOOK)
    url = models.CharField("URL", max_length=2000, blank=True, help_text="Of a webhook: gets a signed POST with JSON.")
    addresses = models.CharField(
        max_length=1000, blank=True, help_text="Of e-mail: one or more addresses, separated by commas."
    )
    events = models.JSONField(default=all_events, blank=True)
    is_enabled = models.BooleanField("enabled", default=True, help_text="If off, nothing is sent to it.")
    salt = models.CharField(max_length=64, default=make_salt, editable=False)
    last_sent_at: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(
        null=True, blank=True, editable=False
    )
    last_error = models.CharField(max_length=200, blank=True, editable=False)
    """Why the last attempt failed; empty if it did not."""

    class Meta:
        ordering = ["name"]
        verbose_name = "alert destination"

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Check that something can be sent to it."""
        if not is_printable(self.name):
            raise ValidationError({"name": "The name must not contain control or format characters."})
        if not isinstance(self.events, list) or not set(map(str, self.events)) <= set(EVENTS):
            raise ValidationError({"events": f"Only these are known: {', '.join(EVENTS)}."})
        if self.kind == self.Kind.WEBHOOK:
            self.addresses = ""
            require_webhook_url(self.url)
        else:
            self.url = ""
            self._clean_addresses()

    def _clean_addresses(self) -> None:
        addresses = self.address_list
        if not addresses:
            raise ValidationError({"addresses": "Enter at least one e-mail address."})
        if len(addresses) > MAX_ADDRESSES:
            raise ValidationError({"addresses": f"Enter {MAX_ADDRESSES} addresses at most."})
        for address in addresses:
            try:
                validate_email(address)
            except ValidationError:
                raise ValidationError({"addresses": "One of these is not an e-mail address."}) from None
        self.addresses = ", ".join(addresses)

    @property
    def address_list(self) -> list[str]:
        """Its e-mail addresses."""
        return [address.strip() for address in self.addresses.split(",") if address.strip()]

    @property
    def where(self) -> str:
        """Where it is, without what may be secret: paths of webhooks often have a token in them."""
        if self.kind == self.Kind.EMAIL:
            return self.addresses
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}/…"

    def wants(self, event: str, subject: str) -> bool:
        """Whether it is told of alerts about this event and subject."""
        if event not in self.events:
            return False
        # It is told of each of these servers already.
        hears_of_servers = {"server_failed", "server_blocked"} <= set(self.events)
        return not (event == "host_degraded" and subject == OF_SERVERS and hears_of_servers)


def require_webhook_url(url: str) -> None:
    """Check that messages may be sent to `url`. Where its name leads is checked at each connection.

    Raises:
        ValidationError
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise ValidationError({"url": "Enter a URL that begins with https:// or http://."})
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValidationError({"url": "The URL cannot have a user, a password or a fragment (#)."})
    address = "127.0.0.1" if host == "localhost" else host
    reason = refused_address(address, allows_private=conf.alerts_allow_private_addresses, setting=_PRIVATE_ADDRESSES)
    if reason is not None:
        raise ValidationError({"url": f"The URL names {reason}."})


class Alert(models.Model):
    """One alert, from its beginning to its end."""

    event = models.CharField(max_length=20, choices=list(EVENT_LABELS.items()))
    subject = models.CharField(max_length=255)
    text = models.CharField(max_length=500)
    began_at = models.DateTimeField(default=timezone.now, db_index=True)
    ended_at: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(null=True, blank=True)
    ending = models.CharField(max_length=200, blank=True, help_text="How it ended.")

    class Meta:
        default_permissions = ("view",)
        ordering = ["-began_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["event", "subject"], condition=models.Q(ended_at=None), name="one_open_alert_of_a_kind"
            )
        ]

    def __str__(self) -> str:
        return self.text


class AlertNotice(models.Model):
    """Notes that a destination was told of the beginning of an alert, and whether it was told of its end."""

    alert = models.ForeignKey(Alert, on_delete=models.CASCADE, related_name="notices")
    destination = models.ForeignKey(AlertDestination, on_delete=models.CASCADE, related_name="notices")
    is_end_told = models.BooleanField(default=False)

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["alert", "destination"], name="one_notice_of_an_alert")]

    def __str__(self) -> str:
        return f"{self.destination_id}: {self.alert_id}"


class AlertMessage(models.Model):
    """A message to one destination, about one or more alerts."""

    class State(models.TextChoices):
        """Whether it was sent."""

        WAITING = "waiting", "Waiting"
        SENT = "sent", "Sent"
        GIVEN_UP = "given up", "Given up"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    destination = models.ForeignKey(AlertDestination, on_delete=models.CASCADE, related_name="messages")
    is_test = models.BooleanField(default=False)
    items = models.JSONField()
    created_at = models.DateTimeField(default=timezone.now)
    state = models.CharField(max_length=10, choices=State.choices, default=State.WAITING, db_index=True)
    attempts = models.PositiveIntegerField(default=0)
    next_attempt_at = models.DateTimeField(default=timezone.now)
    """While a process sends it: until when no other process may send it."""
    finished_at: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(null=True, blank=True)
    error = models.CharField(max_length=200, blank=True)

    class Meta:
        default_permissions = ()
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["destination", "created_at"], name="messages_of_a_destination")]

    def __str__(self) -> str:
        return str(self.id)


class ProcessTroubles(models.Model):
    """What is wrong in one process, as it reported last. Rows of processes that have died are ignored."""

    process_id = models.UUIDField(primary_key=True)
    troubles = models.JSONField(default=dict)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.process_id)


def open_alerts() -> "models.QuerySet[Alert]":
    """The alerts that have begun and not ended."""
    return Alert.objects.filter(ended_at=None)
