"""Sends one message, by webhook or e-mail. Blocks for as long as one attempt may take; for threads of its own.

Not here: when it is sent, and what happens if it cannot be (`sender`, `outbox`).
"""

import asyncio
import json
import smtplib
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, TypedDict
from uuid import UUID

from django.core.mail import EmailMessage
from django.urls import reverse
from django.utils import timezone

from gateway import __version__
from gateway.alerts.signing import signature_headers
from gateway.conf import conf
from gateway.printable import printable

PAYLOAD_TYPE: Final = "gumcp.alerts"

MAX_ERROR_LENGTH: Final = 200


class Item(TypedDict):
    """The beginning or the end of one alert, as it stands in a message."""

    id: int | None
    """The id of the alert, the same at its beginning and its end. None for a test, and while the database is away."""
    event: str
    state: Literal["begun", "ended", "test"]
    subject: str
    text: str
    began_at: str
    ended_at: str | None
    """ISO 8601, UTC."""


class DeliveryError(Exception):
    """A message could not be sent. The text says why, and contains nothing that the receiver said."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message with all that is needed to send it, so that sending needs no database."""

    message_id: UUID
    destination_id: int
    kind: str
    url: str = field(repr=False)
    addresses: Sequence[str]
    salt: str = field(repr=False)
    items: Sequence[Item]
    created_at: datetime
    attempt: int = 1
    is_test: bool = False


def deliver(message: Outgoing) -> None:
    """Send a message.

    Raises:
        DeliveryError: the destination did not take it. The text says why.
    """
    try:
        if message.kind == "email":
            _send_email(message)
        else:
            asyncio.run(_post(message))
    except DeliveryError:
        raise
    except Exception as error:
        raise DeliveryError(_reason(error)) from error


def payload(message: Outgoing, now: datetime) -> dict[str, Any]:
    """The body of a webhook."""
    return {
        "type": PAYLOAD_TYPE,
        "timestamp": now.isoformat(timespec="seconds"),
        "text": "\n".join(item["text"] for item in message.items),
        "data": {"host": conf.base_url, "alerts": list(message.items)},
    }


async def _post(message: Outgoing) -> None:
    # Imported here: it takes an HTTP client, which commands do without.
    import httpx2

    from gateway.upstreams.checked_transport import CheckedTransport

    body = json.dumps(payload(message, timezone.now()), ensure_ascii=False).encode()
    headers = {
        "content-type": "application/json",
        "user-agent": f"gumcp/{__version__}",
        **signature_headers(message.salt, str(message.message_id), int(time.time()), body),
    }
    refusals: list[str] = []
    transport = CheckedTransport(refusals.append, allows_private=conf.alerts_allow_private_addresses)
    try:
        async with (
            asyncio.timeout(conf.alert_send_seconds),
            httpx2.AsyncClient(transport=transport, trust_env=False, timeout=conf.alert_send_seconds) as client,
            # Only the status is read. The body is not needed, and may be long.
            client.stream("POST", message.url, content=body, headers=headers) as response,
        ):
            status = response.status_code
    except (httpx2.HTTPError, OSError) as error:
        if refusals:
            raise DeliveryError("The name in the URL leads to an address that is refused.") from None
        raise DeliveryError(_reason(error)) from None
    if 300 <= status < 400:
        raise DeliveryError(f"The receiver answered with a redirect (status {status}), which is not followed.")
    if not 200 <= status < 300:
        raise DeliveryError(f"The receiver answered with status {status}.")


def _send_email(message: Outgoing) -> None:
    if not conf.email_url:
        raise DeliveryError("GUMCP_EMAIL_URL is not set, so no e-mail can be sent.")
    first = message.items[0]["text"]
    more = f" (and {len(message.items) - 1} more)" if len(message.items) > 1 else ""
    lines = [
        *(f"{item['text']}\n  since {item['began_at']}{_until(item)}" for item in message.items),
        f"{conf.base_url}{reverse('admin:index')}",
        "This message was sent by guMCP. Who gets it is set in its admin, under Alert destinations.",
    ]
    EmailMessage(
        subject=printable(f"[guMCP] {first}{more}")[:200],
        body="\n\n".join(lines),
        to=list(message.addresses),
        headers={"Message-ID": f"<{message.message_id}@gumcp>", "Auto-Submitted": "auto-generated"},
    ).send()


def _until(item: Item) -> str:
    return f", until {item['ended_at']}" if item["ended_at"] else ""


def _reason(error: BaseException) -> str:
    """Why an attempt failed: only the kind of error, because texts of servers and libraries may contain anything."""
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"There was no answer within {conf.alert_send_seconds:g} s."
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return "The mail server refused the user or password of GUMCP_EMAIL_URL."
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return "The mail server refused the addresses."
    if isinstance(error, smtplib.SMTPResponseException):
        return f"The mail server answered {error.smtp_code}."
    if isinstance(error, socket.gaierror):
        return "The name of the receiver is not known."
    if isinstance(error, ConnectionRefusedError):
        return "The receiver refused the connection."
    if isinstance(error, ssl.SSLError):
        return f"The connection could not be made secure ({type(error).__name__})."
    cause = error.__cause__ or error.__context__
    if cause is not None and cause is not error:
        return _reason(cause)
    return f"The message could not be sent ({type(error).__name__})."[:MAX_ERROR_LENGTH]
