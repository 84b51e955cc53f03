"""Decides under which names this host answers and which web pages may call it.

This protects a host on somebody's own machine or network from the pages of other sites. It covers DNS rebinding (the
Host header), requests that name the page that made them (Origin), and requests that do not: for an image or a link
browsers send no Origin, but Sec-Fetch-Site tells that a page of another site caused the request. Old browsers do not
send it, and new ones send it only to hosts with TLS or on their own machine. Then the Referer names the page, unless
the page forbids that. MCP clients send no Referer.

Spec: 2025-11-25 basic/transports#security-warning (servers MUST validate Origin);
https://w3c.github.io/webappsec-fetch-metadata/. Django checks Host for its own pages only, and MCP traffic does not
pass Django.
"""

from collections.abc import Iterable
from typing import Final

from django.http.request import split_domain_port, validate_host

from gateway.http.asgi import Scope, Send
from gateway.http.refusals import refuse

MAX_REMEMBERED_HOSTS: Final = 1000
"""How many accepted Host headers are remembered, so that most requests need no parsing."""

FOREIGN_SITES: Final = frozenset({b"cross-site", b"same-site"})
"""Values of Sec-Fetch-Site of requests that another site's page, or a page of another port, has caused."""

BROWSER_AGENT: Final = b"Mozilla/"
"""How the User-Agent of every browser begins."""

FOREIGN_NAME: Final = (
    "This host does not answer to the name in the request's Host header. If it should, add the name to "
    "GUMCP_ALLOWED_HOSTS, or set GUMCP_PUBLIC_URL."
)
FOREIGN_PAGE: Final = (
    "Web pages of this origin may not call this host. If they should, add the origin to GUMCP_ALLOWED_ORIGINS."
)
UNKNOWN_PAGE: Final = (
    "This request comes from a browser that does not say which page made it, so it may be anybody's page. Use an MCP "
    "client, or GUMCP_AUTH=keys."
)


class OriginPolicy:
    """The names of this host, and the web pages that may call it."""

    def __init__(
        self, allowed_hosts: Iterable[str], allowed_origins: Iterable[str], allowed_headers: Iterable[str] = ()
    ) -> None:
        """`allowed_hosts` as of Django's ALLOWED_HOSTS; `allowed_origins` such as https://app.example.com.

        `allowed_headers`: request headers, in lower case, that these pages may send besides MCP's own; "*" for any.
        """
        self.allowed_headers = frozenset(name.encode() for name in allowed_headers)
        self._allowed_hosts = allowed_hosts
        # "*" is not accepted: sent in Access-Control-Allow-Origin, it would allow every page.
        self._allowed_origins = frozenset(origin.encode() for origin in allowed_origins if origin != "*")
        self._accepted: set[bytes] = set()

    async def refuse_foreign(self, scope: Scope, send: Send) -> bool:
        """Refuse a request under a foreign name or from a foreign web page; True if this one was refused."""
        hosts, origins, referer = [], [], None
        is_foreign_site = says_site = False
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"origin":
                origins.append(value)
            elif name == b"sec-fetch-site":
                says_site = True
                if value.strip().lower() in FOREIGN_SITES:
                    is_foreign_site = True
            elif name == b"referer":
                referer = value
        if await self._refuse_name(hosts, send):
            return True
        # An allowed page on another site sends its origin with every request that it may read.
        is_allowed_page = len(origins) == 1 and self._is_allowed(origins[0], hosts[0])
        if (origins or is_foreign_site) and not is_allowed_page:
            await refuse(send, 403, "bad_origin", FOREIGN_PAGE)
            return True
        if referer is not None and not (origins or says_site) and not self._is_allowed(_origin_of(referer), hosts[0]):
            await refuse(send, 403, "bad_origin", FOREIGN_PAGE)
            return True
        return False

    async def refuse_foreign_name(self, scope: Scope, send: Send) -> bool:
        """Refuse a request under a foreign name; True if this one was refused."""
        return await self._refuse_name([value for name, value in scope["headers"] if name == b"host"], send)

    def allowed_origin(self, scope: Scope) -> bytes | None:
        """The origin of the web page that makes a request which `refuse_foreign` lets through; None without a page."""
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        if len(origins) != 1:
            return None
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return None
        return origins[0] if self._is_allowed(origins[0], hosts[0]) else None

    async def _refuse_name(self, hosts: list[bytes], send: Send) -> bool:
        # RFC 9112 section 3.2: a request with no Host header or several is answered 400.
        if len(hosts) != 1:
            await refuse(send, 400, "bad_host", "The request must have one Host header.")
            return True
        if not self._is_own(hosts[0]):
            await refuse(send, 421, "bad_host", FOREIGN_NAME)
            return True
        return False

    def _is_own(self, host: bytes) -> bool:
        if host in self._accepted:
            return True
        domain, _ = split_domain_port(host.decode("latin-1"))
        is_own = bool(domain) and validate_host(domain, self._allowed_hosts)
        if is_own and len(self._accepted) < MAX_REMEMBERED_HOSTS:
            self._accepted.add(host)
        return is_own

    def _is_allowed(self, origin: bytes, host: bytes) -> bool:
        # The host's own pages too. Behind a proxy their scheme may differ from that of the request.
        return origin in self._allowed_origins or origin in (b"http://" + host, b"https://" + host)


def _origin_of(url: bytes) -> bytes:
    """Scheme, host and port of a URL as browsers write it. What is not a URL has an origin that nobody has."""
    return b"/".join(url.split(b"/", 3)[:3])


def is_of_unknown_page(scope: Scope) -> bool:
    """Whether a browser sent a request that does not say which page made it. Any page can make such a GET."""
    is_browser = False
    for name, value in scope["headers"]:
        if name in (b"origin", b"sec-fetch-site", b"referer"):
            return False
        if name == b"user-agent" and value.startswith(BROWSER_AGENT):
            is_browser = True
    return is_browser
