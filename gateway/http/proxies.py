"""Applies the X-Forwarded-For, -Proto and -Host headers of trusted reverse proxies to the ASGI scope.

This is done once, before anything looks at the scope: limits, addresses of sessions, the origin policy and Django then
see the client. The headers of everybody else are ignored.
"""

from collections.abc import Iterable, MutableMapping
from functools import lru_cache
from typing import Any, Final

from gateway.http.addresses import parse_address, parse_forwarded_address, parse_network

UNIX_SOCKET: Final = "unix"
"""In the list of proxies: all connections over a Unix socket."""

_Scope = MutableMapping[str, Any]


class TrustedProxies:
    """The proxies whose headers are believed."""

    def __init__(self, proxies: Iterable[str]) -> None:
        """`proxies`: addresses and networks such as 127.0.0.1 and 10.0.0.0/8, or "unix".

        Raises:
            ValueError: one of them is none of these.
        """
        names = list(proxies)
        self._networks = [parse_network(name) for name in names if name != UNIX_SOCKET]
        self._trusts_unix_socket = UNIX_SOCKET in names
        self._is_trusted = lru_cache(maxsize=10_000)(self._look_up)

    def client_scope(self, scope: _Scope) -> _Scope:
        """Return the scope of the client's request, if a trusted proxy forwarded it; otherwise `scope` itself."""
        if not self._networks and not self._trusts_unix_socket:
            return scope
        client = scope.get("client")
        is_trusted = self._is_trusted(str(client[0])) if client else self._trusts_unix_socket
        if not is_trusted:
            return scope
        forwarded = dict(scope)
        address = self._forwarded_address(scope)
        if address is not None:
            # The client's port is unknown: no header tells it reliably.
            forwarded["client"] = (address, 0)
        # The trusted proxy wrote the last value. Those before it came from somebody else.
        scheme = _last(scope, b"x-forwarded-proto")
        if scheme in (b"http", b"https"):
            forwarded["scheme"] = scheme.decode("ascii")
        host = _last(scope, b"x-forwarded-host")
        if host:
            headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
            forwarded["headers"] = [(b"host", host), *headers]
        return forwarded

    def _forwarded_address(self, scope: _Scope) -> str | None:
        """The last address that is not a trusted proxy's. The client may have written those before it itself."""
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
