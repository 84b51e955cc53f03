"""What the host gives to every instance of one server."""

from dataclasses import dataclass

from django.conf import settings
from django.utils.crypto import salted_hmac
from mcp.server.request_state import RequestStateSecurity

from gateway.instances.calls import ServerCalls


@dataclass(frozen=True, slots=True)
class ServerDependencies:
    """What the instances of one server share."""

    calls: ServerCalls
    request_state: RequestStateSecurity
    """Seals the `requestState` that clients keep between the rounds of one request."""


def request_state_security() -> RequestStateSecurity:
    """The keys come from Django's secret key, so a state is still valid after a restart or a change of that key."""
    secrets = dict.fromkeys([settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS])
    return RequestStateSecurity(
        keys=[
            salted_hmac("gumcp.request-state", "v1", secret=secret, algorithm="sha256").digest() for secret in secrets
        ]
    )
