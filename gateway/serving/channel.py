"""One socket: when bytes may come, when they may go, and when it has had its time.

A channel reads whole requests, one after the other, and lends itself to an `Exchange` for each. It starts no
application before the body is there, so that no half-sent request is ever an application's business.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.interfaces import IPushProducer, ISSLTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Server as TcpTransport
from twisted.protocols.policies import ProtocolWrapper
from twisted.web.http import _ChunkedTransferDecoder, _MalformedChunkedDataError
from zope.interface import implementer

from gateway.http.addresses import counted_address
from gateway.serving.exchange import Exchange
from gateway.serving.head import RequestHead, RequestRefusedError, is_hopeless, parse_head
from gateway.serving.limits import ServingEvent, ServingLimits

if TYPE_CHECKING:
    from gateway.serving.server import Server

logger = logging.getLogger(__name__)

READ_AHEAD_BYTES: Final = 16 * 1024
"""Pipelined bytes kept while an exchange runs; Twisted's own figure. Beyond it the socket is not read, and a disconnect
not seen, until the response is done."""

LINGER_SECONDS: Final = 2.0
"""How long a client that has been sent the last answer may go on sending: a socket closed over unread bytes resets, and
takes the answer along."""

LINGERING_REFUSALS: Final = 256
"""Sockets beyond the limit that are told so at one time; the rest are closed without a word."""

DRAIN_ALLOWANCE_SECONDS: Final = 0.5
"""What a request that is on its way when the shutdown begins has left to arrive."""

CHUNK_OVERHEAD_BYTES: Final = 64 * 1024
"""A chunked body may cost twice its limit and this on the wire: chunks of one byte are work and not content."""

TRAILER_BYTES: Final = 4 * 1024
"""Trailers are thrown away, but held until the body is whole; Twisted allows 64 KiB, in lines of a byte if need be."""


class _Reading(Enum):
    HEAD = auto()
    BODY = auto()
    NOTHING = auto()
    """An exchange runs."""
    DISCARDING = auto()
    """Refused, the client is being waited for."""


@implementer(IPushProducer)
class Channel(Protocol):  # type: ignore[misc]
    """Speak HTTP/1.x on one connection."""

    def __init__(self, server: Server, factory: ChannelFactory, address: str | None, *, is_surplus: bool) -> None:
        self.server = server
        self.factory: ChannelFactory = factory
        self.address = address
        self.is_surplus = is_surplus
        self.client: tuple[str, int] | None = None
        self.host: tuple[str, int] | None = None
        self.is_secure = False
        self.is_write_paused = False
        self.exchange: Exchange | None = None
        self._limits: ServingLimits = server.limits
        self._reading = _Reading.HEAD
        self._is_read = True
        self._buffer = bytearray()
        self._head: RequestHead | None = None
        self._body = bytearray()
        self._body_wire_bytes = 0
        self._body_started_at = 0.0
        self._decoder: Any = None
        self._requests_read = 0
        self._skipped_blank_line = False
        self._deadline: float | None = None
        self._drained: asyncio.Event | None = None
        self._socket_transport: Any = None
        """What sits on the socket: under TLS not what the channel writes to."""
        self._writes_directly = False
        self._written_bytes = 0
        self._take_until: tuple[float, int] | None = None
        """The moment by which the client must have taken so many of the written bytes."""

    # What Twisted calls

    def connectionMade(self) -> None:
        # Under TLS this comes before the handshake, which has to be over, with the headers, by the deadline.
        self.factory.opened(self)
        self._deadline = time.monotonic() + self._limits.header_timeout_seconds
        transport = self.transport
        self.is_secure = ISSLTransport.providedBy(transport)
        self._socket_transport = _innermost(transport)
        self._writes_directly = isinstance(transport, TcpTransport) and not self.is_secure
        transport.registerProducer(self, True)
        peer, host = transport.getPeer(), transport.getHost()
        if hasattr(peer, "port") and hasattr(host, "port"):
            self.client = (str(peer.host), peer.port)
            self.host = (str(host.host), host.port)
            # Not getHandle(): under TLS that is the OpenSSL connection.
            _watch_for_lost_peer(self._socket_transport.socket, self._limits.peer_lost_seconds)
        if self.is_surplus:
            self.refuse(503, "too_many_connections")
        elif self.server.is_draining:
            self.drain()

    def dataReceived(self, data: bytes) -> None:
        try:
            if self._reading is _Reading.HEAD:
                if not self._buffer and self._requests_read and not self.server.is_draining:
                    self._deadline = time.monotonic() + self._limits.header_timeout_seconds
                self._buffer += data
                self._read_head()
            elif self._reading is _Reading.NOTHING:
                self._buffer += data
                self._regulate_reading()
            elif self._reading is _Reading.BODY:
                self._read_body(data)
        except RequestRefusedError as refusal:
            self.refuse(refusal.status, refusal.event)
        except Exception:
            # Twisted's own log is silenced by Daphne, and an exception here would leave without a trace.
            logger.exception("Connection failed while it was read")
            self.abort()

    def connectionLost(self, reason: object) -> None:
        self._deadline = None
        self._buffer.clear()
        self._drop_body()
        if self._drained is not None:
            self._drained.set()
        if self.exchange is not None:
            exchange, self.exchange = self.exchange, None
            exchange.disconnected()
        self.factory.closed(self)

    def pauseProducing(self) -> None:
        """Twisted holds more than 64 KiB for this socket."""
        self.is_write_paused = True
        if self._drained is not None:
            self._drained.clear()
        self._regulate_reading()

    def resumeProducing(self) -> None:
        """Twisted holds nothing any more."""
        self.is_write_paused = False
        if self._drained is not None:
            self._drained.set()
        self._regulate_reading()

    def stopProducing(self) -> None:
        """Twisted has lost the connection and says so by `connectionLost` as well."""

    # What an exchange calls

    def write(self, data: bytes) -> None:
        """Send now what the kernel takes, and let Twisted keep the rest.

        Twisted would wait for the socket to become writable, which costs a turn of the loop and two calls of epoll_ctl
        for every response. It hardly ever is not.
        """
        self._written_bytes += len(data)
        transport = self.transport
        if self._writes_directly and not self._held_bytes() and transport.connected and not transport.disconnecting:
            sent = transport.writeSomeData(data)
            # Anything but a number is the error of a connection that is lost: Twisted meets it again and ends it.
            if isinstance(sent, int) and sent > 0:
                if sent == len(data):
                    return
                data = data[sent:]
        transport.write(data)

    async def drained(self) -> None:
        """Wait until the client has taken what is held for it, or is gone."""
        if self._drained is None:
            self._drained = asyncio.Event()
        if not self.is_write_paused:
            self._drained.set()
        await self._drained.wait()

    def exchange_ended(self, *, reusable: bool) -> None:
        """Go on with the next request, if the connection is to have one."""
        self.exchange = None
        if not reusable or self.server.is_draining:
            self._close(lingers=bool(self._buffer))
            return
        self._reading = _Reading.HEAD
        self._skipped_blank_line = False
        seconds = self._limits.header_timeout_seconds if self._buffer else self._limits.keep_alive_seconds
        self._deadline = time.monotonic() + seconds
        self._regulate_reading()
        if self._buffer:
            self.dataReceived(b"")

    def abort(self) -> None:
        """Reset the connection; what it holds is lost."""
        self.transport.abortConnection()

    # What the server calls

    def check_deadlines(self, now: float) -> None:
        """End the connection if the client has used up its time."""
        if self._is_slow_reader(now):
            self._count("slow_reader")
            self.abort()
        elif self._reading is _Reading.DISCARDING:
            self._check_lingering(now)
        elif self._deadline is not None and now >= self._deadline:
            self._deadline = None
            if self.server.is_draining:
                self._close(lingers=False)
            elif self._reading is _Reading.BODY:
                self.refuse(408, "body_timeout")
            elif self._buffer:
                self.refuse(408, "header_timeout")
            elif not self._requests_read:
                self._count("header_timeout")
                self._close(lingers=False)
            else:
                self._close(lingers=False)

    def drain(self) -> None:
        """Take no request any more; one that is on its way has half a second, one that is being served its time."""
        if self.exchange is not None:
            self.exchange.close_after_response()
        elif self._reading is _Reading.DISCARDING:
            self._socket_transport.loseConnection()
        elif self._reading is _Reading.HEAD and self._requests_read and not self._buffer:
            self._close(lingers=False)
        else:
            self._deadline = time.monotonic() + DRAIN_ALLOWANCE_SECONDS

    def refuse(self, status: int, event: ServingEvent) -> None:
        """Answer `status` in the server's own name and read nothing any more."""
        self._count(event)
        phrase = HTTPStatus(status).phrase.encode("ascii")
        body = b'{"error": "%b"}' % phrase
        self._head = None
        self._buffer.clear()
        self._drop_body()
        self.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, phrase, len(body), body)
        )
        self._close(lingers=True)

    # Requests

    def _read_head(self) -> None:
        buffer = self._buffer
        if buffer.startswith(b"\r") and not self._skipped_blank_line:
            # RFC 9112 section 2.2: at least one empty line before the request line is ignored.
            if len(buffer) == 1:
                return
            if buffer.startswith(b"\r\n"):
                del buffer[:2]
                self._skipped_blank_line = True
        end = buffer.find(b"\r\n\r\n")
        if (end if end >= 0 else len(buffer)) > self._limits.head_bytes:
            raise RequestRefusedError(431, "bad_request")
        if end < 0:
            if is_hopeless(buffer):
                raise RequestRefusedError(400, "bad_request")
            return
        head = parse_head(bytes(buffer[:end]), self._limits.head_fields)
        if head.body_bytes is not None and head.body_bytes > self._limits.body_bytes:
            raise RequestRefusedError(413, "body_too_large")
        rest = bytes(buffer[end + 4 :])
        buffer.clear()
        self._requests_read += 1
        self._head = head
        if head.body_bytes == 0:
            self._start_exchange(b"", rest)
            return
        if head.expects_continue and not rest:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._reading = _Reading.BODY
        self._body_wire_bytes = 0
        self._body_started_at = time.monotonic()
        if head.body_bytes is None:
            self._decoder = _ChunkedTransferDecoder(self._add_to_body, self._end_chunked_body)
            self._decoder._maxTrailerHeadersSize = TRAILER_BYTES
        self._read_body(rest)

    def _read_body(self, data: bytes) -> None:
        head = self._head
        assert head is not None
        self._body_wire_bytes += len(data)
        limits = self._limits
        if not self.server.is_draining:
            seconds = limits.body_grace_seconds + self._body_wire_bytes / limits.body_bytes_per_second
            self._deadline = self._body_started_at + min(seconds, limits.body_timeout_seconds)
        if head.body_bytes is None:
            if self._body_wire_bytes > 2 * limits.body_bytes + CHUNK_OVERHEAD_BYTES:
                raise RequestRefusedError(413, "body_too_large")
            try:
                self._decoder.dataReceived(data)
            except _MalformedChunkedDataError:
                raise RequestRefusedError(400, "bad_request") from None
            if self._reading is _Reading.BODY and self._body:
                self._hold_body()
            return
        missing = head.body_bytes - len(self._body)
        if len(data) < missing:
            self._body += data
            if self._body:
                self._hold_body()
        elif self._body:
            self._start_exchange(bytes(self._body + data[:missing]), data[missing:])
        else:
            self._start_exchange(data[:missing], data[missing:])

    def _hold_body(self) -> None:
        """Keep what has come, if need be at the cost of others.

        Raises `RequestRefusedError`: this one has to give way.
        """
        bodies = self.server.unfinished_bodies
        bodies.note(self, len(self._body))
        while (surplus := bodies.pop_surplus()) is not None:
            if surplus is self:
                raise RequestRefusedError(503, "too_many_bodies")
            surplus.refuse(503, "too_many_bodies")

    def _drop_body(self) -> None:
        if self._body:
            self._body = bytearray()
            self.server.unfinished_bodies.forget(self)

    def _add_to_body(self, data: bytes) -> None:
        if len(self._body) + len(data) > self._limits.body_bytes:
            raise RequestRefusedError(413, "body_too_large")
        self._body += data

    def _end_chunked_body(self, rest: bytes) -> None:
        self._decoder = None
        self._start_exchange(bytes(self._body), rest)

    def _start_exchange(self, body: bytes, rest: bytes) -> None:
        head, self._head = self._head, None
        assert head is not None
        self._deadline = None
        self._drop_body()
        self._reading = _Reading.NOTHING
        self._buffer += rest
        self.exchange = Exchange(self, head, body)
        if self.server.is_draining:
            self.exchange.close_after_response()
        if rest:
            self._regulate_reading()
        self.server.serve(self.exchange)

    # Flow

    def _regulate_reading(self) -> None:
        if self._reading is _Reading.NOTHING:
            reads = len(self._buffer) <= READ_AHEAD_BYTES
        else:
            # Twisted's way too: a client that does not read its answers is not read either.
            reads = not self.is_write_paused or self._reading is _Reading.DISCARDING
        if reads != self._is_read:
            self._is_read = reads
            if reads:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def _held_bytes(self) -> int:
        # Under TLS these are encrypted bytes, a few more than were written. OpenSSL itself keeps none.
        transport = self._socket_transport
        return int(len(transport.dataBuffer) - transport.offset + transport._tempDataLen)

    def _is_slow_reader(self, now: float) -> bool:
        held = self._held_bytes()
        if not held:
            self._take_until = None
            return False
        taken = self._written_bytes - held
        if self._take_until is None or taken >= self._take_until[1]:
            due = taken + min(held, self._limits.buffered_bytes)
            self._take_until = (now + self._limits.slow_reader_seconds, due)
        return now >= self._take_until[0]

    def _close(self, *, lingers: bool) -> None:
        """Close after everything held is sent; with `lingers`, wait for the client to close first."""
        self._deadline = None
        # With a producer Twisted would wait for it instead of closing.
        self.transport.unregisterProducer()
        self._reading = _Reading.DISCARDING
        self._buffer.clear()
        if lingers and not self.server.is_draining:
            self._regulate_reading()
            if self.is_secure:
                # Sends the closure alert and waits for the client's.
                self.transport.loseConnection()
            else:
                self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()
            if self.is_secure:
                # RFC 8446 section 6.1: who has sent its closure alert need not wait for the other's, and a client that
                # has nothing to ask does not read.
                self._socket_transport.loseConnection()

    def _check_lingering(self, now: float) -> None:
        """Let go of a client that has been waited for; a time that begins only when it has taken what was held."""
        if self._held_bytes():
            return
        if self._deadline is None:
            self._deadline = now + LINGER_SECONDS
        elif now >= self._deadline:
            # No reset: the kernel may still have some of the answer to deliver.
            self._socket_transport.loseConnection()

    def _count(self, event: ServingEvent) -> None:
        logger.debug("Connection of %s ended: %s", self.client, event)
        try:
            self.server.hooks.on_event(event)
        except Exception:
            logger.exception("on_event failed")


class _Closer(Protocol):  # type: ignore[misc]
    """Close the connection. For TLS, None from a factory is an error that leaves the socket open."""

    def connectionMade(self) -> None:
        self.transport.loseConnection()


class ChannelFactory(Factory):  # type: ignore[misc]
    """Make channels and know the open ones."""

    noisy = False

    def __init__(self, server: Server) -> None:
        self.channels: set[Channel] = set()
        self._server = server
        self._open_by_address: Counter[str] = Counter()
        self._refused_channels = 0

    def buildProtocol(self, addr: Any) -> Protocol:
        limits = self._server.limits
        address = None
        if not self._server.proxy_forwarded_address_header and getattr(addr, "host", None):
            address = counted_address(addr.host)
        is_surplus = len(self.channels) - self._refused_channels >= limits.connections or (
            address is not None and self._open_by_address[address] >= limits.connections_per_address
        )
        if is_surplus and self._refused_channels >= LINGERING_REFUSALS:
            self._server.hooks.on_event("too_many_connections")
            return _Closer()
        return Channel(self._server, self, address, is_surplus=is_surplus)

    def opened(self, channel: Channel) -> None:
        """Count a channel in; a surplus one counts apart, so that refusing does not keep the limit reached."""
        self.channels.add(channel)
        if channel.is_surplus:
            self._refused_channels += 1
        elif channel.address is not None:
            self._open_by_address[channel.address] += 1

    def closed(self, channel: Channel) -> None:
        """Count a channel out."""
        self.channels.discard(channel)
        if channel.is_surplus:
            self._refused_channels -= 1
        elif channel.address is not None:
            self._open_by_address[channel.address] -= 1
            if not self._open_by_address[channel.address]:
                del self._open_by_address[channel.address]
        self._server.something_ended()


def _innermost(transport: Any) -> Any:
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def _watch_for_lost_peer(handle: socket.socket, lost_seconds: int) -> None:
    """Have the kernel find out, in `lost_seconds`, that a peer went without a FIN."""
    try:
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A third of the time in silence, then three probes. Keepalive does not probe while sent bytes are not
        # acknowledged: the user timeout is for that case, which is the common one on a stream. It also overrules the
        # count of probes (tcp(7)) and is looked at when one is due, hence a probe's time less.
        for option, value in (
            ("TCP_KEEPIDLE", max(1, lost_seconds // 3)),
            ("TCP_KEEPINTVL", max(1, lost_seconds // 6)),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", lost_seconds * 5000 // 6),
        ):
            if hasattr(socket, option):
                handle.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    except OSError:
        logger.debug("TCP options refused", exc_info=True)
