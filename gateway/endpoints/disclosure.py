"""Who may see which servers there are, on the pages that anybody may ask: `/` and `/health_check`.

Without keys everybody who reaches the host may, because they may use the servers too. Where keys are checked, a caller
with a key is told the servers that the key is for, and staff and this machine itself are told all. Strangers are told
the status only.
"""

import re
from typing import TYPE_CHECKING, Final

from gateway.exceptions import GatewayError
from gateway.http.addresses import is_loopback
from gateway.http.asgi import Scope
from gateway.http.requests import client_address, header

if TYPE_CHECKING:  # Django's pages are checked without the SDK, which this imports
    from gateway.host.host import Host

FORWARDING_HEADERS: Final = frozenset({b"forwarded", b"via", b"x-real-ip"})
FORWARDING_PREFIX: Final = b"x-forwarded-"
"""What a proxy adds. A request with one of these headers comes from elsewhere, whatever its socket says."""

LOCAL_NAMES: Final = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})

_PORT: Final = re.compile(rb":\d+$")


async def visible_servers(host: "Host", scope: Scope, *, is_staff: bool = False) -> list[str] | None:
    """The names of the servers that the caller may see; None for a stranger. `is_staff`: a staff session is known."""
    names = host.registry.names
    authenticator = host.doorkeeper.authenticator
    if not authenticator.checks_keys or is_staff:
        return names
    without_key = names if is_from_this_machine(scope) else None
    if header(scope, b"authorization") is None:
        return without_key
    try:
        identity = await authenticator.identify_key(scope["headers"], client_address(scope))
    except GatewayError:  # the status is for everybody, also with a key that is not good or cannot be checked
        return without_key
    return [name for name in names if identity.grant is not None and identity.grant.allows_server(name)]


def is_from_this_machine(scope: Scope) -> bool:
    """Whether the caller is on this machine and not a proxy that forwards somebody else's request.

    Another name in `Host` means a proxy that keeps the client's, or DNS rebinding.
    """
    for name, value in scope["headers"]:
        if name in FORWARDING_HEADERS or name.startswith(FORWARDING_PREFIX):
            return False
        if name == b"host" and _PORT.sub(b"", value) not in LOCAL_NAMES:
            return False
    return is_loopback(client_address(scope))
