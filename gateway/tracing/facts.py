"""What a request's span says that only the endpoints know. This module does not import OpenTelemetry."""

from collections.abc import Callable
from typing import NamedTuple

from gateway.http.asgi import Message, Scope


class RequestFacts(NamedTuple):
    """What is known of a request when it has been answered. Empty: not known."""

    server_name: str
    transport: str
    protocol_version: str


FindFacts = Callable[[Scope, Message | None], RequestFacts]
"""Gets the scope, and the message that began the response."""
