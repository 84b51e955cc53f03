"""The open connections of our Daphne: makes a channel for each and limits their number."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from twisted.internet.protocol import Factory, Protocol

from gateway.http.addresses import counted_address
from gateway.serving.channel import Channel, ChannelServer

REFUSALS_AT_ONCE: Final = 256
"""How many connections beyond the limit are answered at one time. The rest are closed without an answer."""


class _Closer(Protocol):  # type: ignore[misc]
    """Closes the connection. Twisted's TLS takes None from a factory for an error and leaves the socket open."""

    def connectionMade(self) -> None:
        self.transport.loseConnection()


class ChannelFactory(Factory):  # type: ignore[misc]
    """Makes channels and knows the open ones."""

    noisy = False

    def __init__(self, server: ChannelServer) -> None:
        self.channels: set[Channel] = set()
        self._server = server
        self._open_by_address: Counter[str] = Counter()
        self._surplus_channels = 0

    def buildProtocol(self, addr: Any) -> Protocol:
        """Make the channel of a new connection."""
        limits = self._server.limits
        address = None
        if not self._server.proxy_forwarded_address_header and getattr(addr, "host", None):
            address = counted_address(addr.host)
        is_surplus = len(self.channels) - self._surplus_channels >= limits.connections or (
            address is not None and self._open_by_address[address] >= limits.connections_per_address
        )
        if is_surplus and self._surplus_channels >= REFUSALS_AT_ONCE:
            self._server.hooks.on_event("too_many_connections")
            return _Closer()
        return Channel(self._server, self, address, is_surplus=is_surplus)

    def opened(self, channel: Channel) -> None:
        """Count an open channel. Surplus ones are counted apart, or refusing them would keep the limit reached."""
        self.channels.add(channel)
        if channel.is_surplus:
            self._surplus_channels += 1
        elif channel.address is not None:
            self._open_by_address[channel.address] += 1

    def closed(self, channel: Channel) -> None:
        """Count a channel as closed."""
        self.channels.discard(channel)
        if channel.is_surplus:
            self._surplus_channels -= 1
        elif channel.address is not None:
            self._open_by_address[channel.address] -= 1
            if not self._open_by_address[channel.address]:
                del self._open_by_address[channel.address]
        self._server.something_ended()
