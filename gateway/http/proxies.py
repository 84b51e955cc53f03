"""What a reverse proxy says of the client behind it, taken from trusted proxies only.

Lives here: X-Forwarded-For, -Proto and -Host, applied to the ASGI scope once, before anything looks at it: limits,
sessions' addresses, the origin policy and Django then see the client. Everybody else's headers change nothing.
"""

from collections.abc import Iterable, MutableMapping
from functools import lru_cache
from typing import Any, Final

from gateway.http.addresses import parse_address, parse_forwarded_address, parse_network

UNIX_SOCKET: Final = "unix"
"""In the list of proxies: whoever connects over a Unix socket."""

_Scope = MutableMapping[str, Any]


class TrustedProxies:
    """The proxies whose word is taken."""

    def __init__(self, proxies: Iterable[str]) -> None:
        """`proxies`: addresses and networks such as 127.0.0.1 and 10.0.0.0/8, or "unix".

        Raises:
            ValueError: one of them is neither.
        """
        names = list(proxies)
        self._networks = [parse_network(name) for name in names if name != UNIX_SOCKET]
        self._trusts_unix_socket = UNIX_SOCKET in names
        self._is_trusted = lru_cache(maxsize=10_000)(self._look_up)

    def client_scope(self, scope: _Scope) -> _Scope:
        """`scope` as the client made it, where a trusted proxy passed it on; `scope` itself otherwise."""
        if not self._networks and not self._trusts_unix_socket:
            return scope
        client = scope.get("client")
        is_trusted = self._is_trusted(str(client[0])) if client else self._trusts_unix_socket
        if not is_trusted:
            return scope
        forwarded = dict(scope)
        address = self._forwarded_address(scope)
        if address is not None:
            # Nobody forwards a port that could be relied on.
            forwarded["client"] = (address, 0)
        # The last one is the trusted proxy's own; what stands before it came from somebody else.
        scheme = _last(scope, b"x-forwarded-proto")
        if scheme in (b"http", b"https"):
            forwarded["scheme"] = scheme.decode("ascii")
        host = _last(scope, b"x-forwarded-host")
        if host:
            headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
            forwarded["headers"] = [(b"host", host), *headers]
        return forwarded

    def _forwarded_address(self, scope: _Scope) -> str | None:
        """The last address that is no trusted proxy's: what stands before it, the client may have written itself."""
        found: str | None = None
        for entry in reversed(_entries(scope, b"x-forwarded-for")):
            address = parse_forwarded_address(entry.decode("latin-1"))
            if address is None:
                break
            found = address
            if not self._is_trusted(address):
                break
        return found

    def _look_up(self, address: str) -> bool:
        parsed = parse_address(address)
        return parsed is not None and any(parsed in network for network in self._networks)


def _entries(scope: _Scope, name: bytes) -> list[bytes]:
    # RFC 9110 section 5.3: several lines of a list are one list.
    value = b",".join(value for key, value in scope["headers"] if key == name)
    return [entry.strip() for entry in value.split(b",") if entry.strip()]


def _last(scope: _Scope, name: bytes) -> bytes:
    entries = _entries(scope, name)
    return entries[-1] if entries else b""
