"""TCP connections on the event loop's own transports, with the methods that a Twisted protocol calls.

Twisted accepts a connection and would then read and write its socket in Python. uvloop does that in C, and without
giving up the interpreter's lock, which the threads of the servers would take each time: Twisted's transport costs a
third of all CPU time that a small call takes.

Only plain TCP is served like this. Connections under TLS and on Unix sockets stay on Twisted's transports.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any, Final, cast

from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IProtocol

PAUSE_BYTES: Final = 64 * 1024
"""How much may wait for the socket before the connection is told to write no more (Twisted's own figure)."""

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: close at once, with a reset."""


class LoopTransport(asyncio.Protocol):
    """The transport of one connection. Used on the event loop."""

    __slots__ = ("_connection", "_is_write_closed", "_received", "_taking", "_transport", "is_closing", "socket")

    def __init__(self, loop: asyncio.AbstractEventLoop, accepted: socket.socket, connection: Any) -> None:
        """Take over a socket that was accepted for `connection`. The connection begins to read in a later turn."""
        self._connection = connection
        self.socket: Any = accepted
        self._transport: asyncio.Transport | None = None
        """None until the loop has taken the socket."""
        self.is_closing = False
        """Whether nothing more may be written."""
        self._is_write_closed = False
        self._received = b""
        self._taking: asyncio.Task[None] | None = loop.create_task(self._take(loop, accepted))

    async def _take(self, loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> None:
        try:
            await loop.connect_accepted_socket(lambda: self, accepted)
        except OSError as error:  # the client is gone already
            if self._transport is None:
                accepted.close()
                self._connection.connectionLost(error)
        finally:
            self._taking = None

    def begin_with(self, data: bytes) -> None:
        """Pass on `data` before what the socket brings. Call it in the same turn of the loop as the constructor."""
        self._received = data

    # Called by the connection

    def getPeer(self) -> Any:
        """The client's address."""
        return _address(self.socket.family, self.socket.getpeername())

    def getHost(self) -> Any:
        """The address at which the client called."""
        return _address(self.socket.family, self.socket.getsockname())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Do nothing: the connection is told in any case when to pause."""

    def unregisterProducer(self) -> None:
        """Do nothing, as above."""

    @property
    def held_bytes(self) -> int:
        """How much was written and has not been taken by the kernel."""
        if self._transport is None or self._transport.is_closing():
            return 0
        return self._transport.get_write_buffer_size()

    @property
    def can_be_given(self) -> bool:
        """Whether another process could go on with the socket. What is held for the client only this one can send."""
        return not self.is_closing and self._transport is not None and not self.held_bytes

    def write(self, data: bytes) -> None:
        """Send `data`. After the end it is dropped."""
        if self._transport is not None and not self.is_closing and not self._is_write_closed:
            self._transport.write(data)
            if self._transport.is_closing():
                # The client has left, and the loop will say so in its next turn. An application that writes on and on
                # must wait for that turn.
                self._connection.pauseProducing()

    def pauseProducing(self) -> None:
        """Read no more."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resumeProducing(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def loseConnection(self) -> None:
        """Close when everything has been sent."""
        self.is_closing = True
        if self._transport is None or self._transport.is_closing():
            return
        if self.held_bytes:
            # As Twisted does, go on reading meanwhile. A socket that is closed over unread bytes is reset, and its
            # client may lose the rest. With this limit `resume_writing` is called when nothing is held any more.
            self._transport.set_write_buffer_limits(high=0)
        else:
            self._transport.close()

    def loseWriteConnection(self) -> None:
        """Close this side when everything has been sent."""
        if self._transport is not None and not self.is_closing and not self._is_write_closed:
            self._is_write_closed = True
            self._transport.write_eof()

    def let_go(self) -> None:
        """Close this process's copy of the socket. The connection goes on where another process has a copy."""
        self.is_closing = True
        if self._transport is not None:
            # Before it is closed, which happens in a later turn: another process reads from here on.
            self._transport.pause_reading()
            self._transport.abort()

    def abortConnection(self) -> None:
        """Reset the connection."""
        self.is_closing = True
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if self._transport is not None:
            self._transport.abort()

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=PAUSE_BYTES, low=0)
        if self.is_closing:
            self._transport.abort()
        elif self._received:
            received, self._received = self._received, b""
            self._connection.dataReceived(received)

    def data_received(self, data: bytes) -> None:
        """Pass on what the client has sent."""
        self._connection.dataReceived(data)

    def eof_received(self) -> None:
        """End: a client that has closed its side has left, as Twisted has it. What was not sent is dropped."""
        self.is_closing = True
        assert self._transport is not None
        self._transport.abort()

    def pause_writing(self) -> None:
        """Hold back: the client takes less than is written."""
        self._connection.pauseProducing()

    def resume_writing(self) -> None:
        """Go on, or close: everything has been sent."""
        self._connection.resumeProducing()
        if self.is_closing and self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on the end."""
        self.is_closing = True
        self._connection.connectionLost(exc)


def serve_on_loop(port: Any, loop: asyncio.AbstractEventLoop, suits: Callable[[IProtocol], bool]) -> None:
    """Have `loop` carry the connections of a listening port, if the port is plain TCP.

    `suits` tells which: the others keep Twisted's transport. `Port.transport` is made to be replaced
    (twisted.internet.tcp.Port).
    """
    if type(port) is not tcp.Port:  # a Unix socket's is a subclass
        return

    def make_transport(accepted: socket.socket, protocol: IProtocol, *others: Any) -> Any:
        if suits(protocol):
            return LoopTransport(loop, accepted, protocol)
        return tcp.Server(accepted, protocol, *others)

    port.transport = make_transport


def _address(family: int, name: Any) -> Any:
    kind = IPv6Address if family == socket.AF_INET6 else IPv4Address
    return kind("TCP", *name[:2])
