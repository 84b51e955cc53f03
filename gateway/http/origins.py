"""Which Host and Origin headers the MCP routes accept: what stops a web page from reaching a local host.

Spec: 2025-11-25 basic/transports#security-warning (servers MUST validate Origin). Django checks Host for its own
pages only; MCP traffic does not pass Django.
"""

from typing import Final

from django.http.request import split_domain_port, validate_host

from gateway.http.asgi import Scope, Send
from gateway.http.refusals import refuse

MAX_REMEMBERED_HOSTS: Final = 1000
"""How many accepted Host headers are remembered, so that most requests need no parsing."""


class OriginPolicy:
    """Which names this host answers to, and which web pages may call it."""

    def __init__(self, allowed_hosts: list[str], allowed_origins: list[str]) -> None:
        self._allowed_hosts = allowed_hosts
        # No wildcard here; repeated to a page in Access-Control-Allow-Origin it would be one.
        self._allowed_origins = frozenset(origin.encode() for origin in allowed_origins if origin != "*")
        self._accepted: set[bytes] = set()

    async def refuse_foreign(self, scope: Scope, send: Send) -> bool:
        """Answer a request that comes under a foreign name or from a foreign web page; True if this one was."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        # RFC 9112 section 3.2: a request with no or several Host headers is answered 400.
        if len(hosts) != 1:
            await refuse(send, 400, "bad_host", "The request must have one Host header.")
            return True
        host = hosts[0]
        if host not in self._accepted and not self._accept(host):
            await refuse(send, 421, "bad_host", "This host does not answer to that name. See GUMCP_PUBLIC_URL.")
            return True
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        if origins and (len(origins) > 1 or not self._is_allowed(origins[0], host)):
            await refuse(send, 403, "bad_origin", "Calls from this page are not allowed. See GUMCP_ALLOWED_ORIGINS.")
            return True
        return False

    def allowed_origin(self, scope: Scope) -> bytes | None:
        """The origin of the web page that makes a request which `refuse_foreign` lets through; None if no page does."""
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        if len(origins) != 1:
            return None
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not (hosts[0] in self._accepted or self._accept(hosts[0])):
            return None
        return origins[0] if self._is_allowed(origins[0], hosts[0]) else None

    def _accept(self, host: bytes) -> bool:
        domain, _ = split_domain_port(host.decode("latin-1"))
        is_own = bool(domain) and validate_host(domain, self._allowed_hosts)
        if is_own and len(self._accepted) < MAX_REMEMBERED_HOSTS:
            self._accepted.add(host)
        return is_own

    def _is_allowed(self, origin: bytes, host: bytes) -> bool:
        # The host's own pages too, which a proxy in front may serve under another port's scheme.
        return origin in self._allowed_origins or origin in (b"http://" + host, b"https://" + host)
