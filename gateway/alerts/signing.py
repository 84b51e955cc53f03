"""How a webhook's receiver knows that a message is this host's: signatures as Standard Webhooks has them.

The signed text is `{id}.{timestamp}.{body}`, the signature its HMAC-SHA256. Libraries for receivers exist in many
languages. Spec: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

The secret is derived from Django's secret key and the destination's salt, so no row has it, and whoever has a copy of
the database alone cannot sign.
"""

import hmac
from base64 import b64encode
from typing import Final

from django.conf import settings

_PURPOSE: Final = b"gumcp alert webhooks "

_PREFIX: Final = "whsec_"


def signing_secret(salt: str) -> bytes:
    """The secret of the destination that has this salt."""
    return hmac.digest(settings.SECRET_KEY.encode(), _PURPOSE + salt.encode(), "sha256")


def shown_secret(salt: str) -> str:
    """The secret as its receiver is given it."""
    return _PREFIX + b64encode(signing_secret(salt)).decode()


def signature_headers(salt: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a message. `timestamp`: seconds since the epoch, of this attempt."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signature = b64encode(hmac.digest(signing_secret(salt), signed, "sha256")).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }
