"""Which Host and Origin headers the MCP routes accept: what stops a web page from reaching a local host.

Spec: 2025-11-25 basic/transports#security-warning (servers MUST validate Origin). Django checks Host for its own
pages only; MCP traffic does not pass Django.
"""

from urllib.parse import urlsplit

from django.conf import settings
from django.http.request import split_domain_port, validate_host

from gateway.conf import conf
from gateway.transports.responses import Scope, Send, refuse


async def refuse_foreign(scope: Scope, send: Send) -> bool:
    """Answer requests that come under a foreign name or from a foreign web page; True if this one was."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    # RFC 9112 section 3.2: a request with no or several Host headers is answered 400.
    if len(hosts) != 1:
        await refuse(send, 400, "bad_host", "The request must have one Host header.")
        return True
    host = hosts[0].decode("latin-1")
    domain, _ = split_domain_port(host)
    if not domain or not validate_host(domain, settings.ALLOWED_HOSTS):
        await refuse(send, 421, "bad_host", "This host does not answer to that name. See GUMCP_PUBLIC_URL.")
        return True
    origins = [value for name, value in scope["headers"] if name == b"origin"]
    if origins and (len(origins) > 1 or not _is_own_origin(origins[0].decode("latin-1"), host)):
        await refuse(send, 403, "bad_origin", "Calls from this web page are not allowed. See GUMCP_ALLOWED_ORIGINS.")
        return True
    return False


def _is_own_origin(origin: str, host: str) -> bool:
    if origin in conf.allowed_origins:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc == host
