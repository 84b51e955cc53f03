"""What the host gives to every instance of one server."""

from typing import TYPE_CHECKING

from django.conf import settings
from django.utils.crypto import salted_hmac
from mcp.server.models import InitializationOptions
from mcp.server.request_state import RequestStateSecurity

from gateway.instances.calls import ServerCalls

if TYPE_CHECKING:
    from gateway.tracing.tracing import Tracing


class ServerDependencies:
    """What the instances of one server share. `share_options` is called in the server's lane."""

    def __init__(
        self, calls: ServerCalls, request_state: RequestStateSecurity, tracing: "Tracing | None" = None
    ) -> None:
        self.calls = calls
        self.tracing = tracing
        """Makes spans; None without tracing."""
        self.request_state = request_state
        """Seals the `requestState` that clients keep between the rounds of one request."""
        self._options: InitializationOptions | None = None

    def share_options(self, options: InitializationOptions) -> InitializationOptions:
        """Return `options`, or equal ones of another instance: most are equal, and each takes 2 KiB."""
        if self._options != options:
            self._options = options
        return self._options or options


def request_state_security() -> RequestStateSecurity:
    """The keys come from Django's secret key, so a state is still valid after a restart or a change of that key."""
    secrets = dict.fromkeys([settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS])
    return RequestStateSecurity(
        keys=[
            salted_hmac("gumcp.request-state", "v1", secret=secret, algorithm="sha256").digest() for secret in secrets
        ]
    )
