"""The open connections of our Daphne: makes a connection for each and limits their number."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from twisted.internet.protocol import Factory, Protocol

from gateway.http.addresses import counted_address
from gateway.serving.connection import ConnectionServer, HttpConnection

REFUSALS_AT_ONCE: Final = 256
"""How many connections beyond the limit are answered at one time. The rest are closed without an answer."""


class _Closer(Protocol):  # type: ignore[misc]
    """Closes the connection. Twisted's TLS takes None from a factory for an error and leaves the socket open."""

    def connectionMade(self) -> None:
        self.transport.loseConnection()


class ConnectionFactory(Factory):  # type: ignore[misc]
    """Makes connections and knows the open ones."""

    noisy = False

    def __init__(self, server: ConnectionServer) -> None:
        self.open: set[HttpConnection] = set()
        self._server = server
        self._open_by_address: Counter[str] = Counter()
        self._surplus = 0

    def buildProtocol(self, addr: Any) -> Protocol:
        """Make the connection object for a socket that was accepted."""
        limits = self._server.limits
        address = None
        if not self._server.proxy_forwarded_address_header and getattr(addr, "host", None):
            address = counted_address(addr.host)
        is_surplus = len(self.open) - self._surplus >= limits.connections or (
            address is not None and self._open_by_address[address] >= limits.connections_per_address
        )
        if is_surplus and self._surplus >= REFUSALS_AT_ONCE:
            self._server.hooks.on_event("too_many_connections")
            return _Closer()
        return HttpConnection(self._server, self, address, is_surplus=is_surplus)

    def opened(self, connection: HttpConnection) -> None:
        """Count an open connection. Surplus ones are counted apart, or refusing them would keep the limit reached."""
        self.open.add(connection)
        if connection.is_surplus:
            self._surplus += 1
        elif connection.address is not None:
            self._open_by_address[connection.address] += 1

    def closed(self, connection: HttpConnection) -> None:
        """Count a connection as closed."""
        self.open.discard(connection)
        if connection.is_surplus:
            self._surplus -= 1
        elif connection.address is not None:
            self._open_by_address[connection.address] -= 1
            if not self._open_by_address[connection.address]:
                del self._open_by_address[connection.address]
        self._server.something_ended()
