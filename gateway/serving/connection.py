"""One connection: when bytes may come, when they may go, and when its time is up.

A connection reads whole requests, one after the other, and makes an `Exchange` of each. No application is started
before the body is there, so a half-sent request is never an application's problem.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import typing
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Final

from twisted.internet.interfaces import IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Server as TcpTransport
from zope.interface import implementer

from gateway.http.slow_readers import SlowReaderRule
from gateway.serving.bodies import UnfinishedBodies
from gateway.serving.chunks import ChunkedBody
from gateway.serving.exchange import Exchange, ExchangeServer
from gateway.serving.handover import Handover
from gateway.serving.head import RequestHead, RequestRefusedError, is_malformed, malformed, parse_head
from gateway.serving.limits import ServingEvent, ServingLimits
from gateway.serving.loop_transport import LoopTransport
from gateway.serving.sockets import innermost, watch_for_lost_peer
from gateway.serving.timetable import DRAIN_ALLOWANCE_SECONDS, PEER_ALLOWANCE_SECONDS
from gateway.serving.turns import BodyTurns

logger = logging.getLogger(__name__)

READ_AHEAD_BYTES: Final = 16 * 1024
"""Pipelined bytes that are kept while an exchange runs (Twisted's own figure). Beyond it the socket is not read, and a
disconnect is not noticed, until the response is done."""

SMALL_CHUNKS_BYTES: Final = 4 * 1024
"""The beginning of a chunked body that is decoded at once. A longer one may be many small chunks and waits for its turn
where others do."""

DECODED_AT_ONCE_BYTES: Final = 64 * 1024
"""How much of a chunked body is decoded in one turn. The loop may read more at once."""

LINGER_SECONDS: Final = 2.0
"""How long a client may go on sending after the last answer. A socket that is closed over unread bytes resets the
connection, and the client may lose the answer."""


class ConnectionServer(ExchangeServer, typing.Protocol):
    """What a connection needs of its server."""

    limits: ServingLimits
    handover: Handover | None
    unfinished_bodies: UnfinishedBodies[HttpConnection]
    body_turns: BodyTurns
    is_draining: bool

    def serve(self, exchange: Exchange) -> None:
        """Run the application for a request."""

    def something_ended(self) -> None:
        """Note that a connection has ended."""

    def give_idle_connections(self) -> None:
        """Give idle connections to the process that serves instead of this one. Called while the server drains."""


class ConnectionList(typing.Protocol):
    """Counts the open connections."""

    def opened(self, connection: HttpConnection) -> None:
        """Count a connection as open."""

    def closed(self, connection: HttpConnection) -> None:
        """Count a connection as closed."""


class _Reading(Enum):
    HEAD = auto()
    BODY = auto()
    NOTHING = auto()
    """An exchange is running."""
    DISCARDING = auto()
    """The last answer has been given, and the client is being waited for."""


@implementer(IPushProducer)
class HttpConnection(Protocol):  # type: ignore[misc]
    """Speaks HTTP/1.x on one connection."""

    __slots__ = (
        "_body",
        "_body_started_at",
        "_body_wire_bytes",
        "_buffer",
        "_checked_bytes",
        "_chunks",
        "_deadline",
        "_drained",
        "_head",
        "_is_read",
        "_limits",
        "_list",
        "_reading",
        "_requests_read",
        "_skipped_blank_line",
        "_slow_reader",
        "_socket_transport",
        "_unread",
        "_waits_for_turn",
        "_writes_directly",
        "_written_bytes",
        "address",
        "client",
        "exchange",
        "host",
        "is_secure",
        "is_surplus",
        "is_write_paused",
        "server",
        "was_idle",
        "was_taken",
    )

    def __init__(
        self, server: ConnectionServer, connections: ConnectionList, address: str | None, *, is_surplus: bool
    ) -> None:
        """`address`: what the connection is counted under. A surplus connection only refuses."""
        self.server = server
        self.address = address
        self.is_surplus = is_surplus
        self.client: tuple[str, int] | None = None
        self.host: tuple[str, int] | None = None
        self.is_secure = False
        self.is_write_paused = False
        self.was_taken = False
        """Whether another process has given this connection with a request, which has not been served yet. It is not
        given away again then: two processes that disagree would send it to and fro."""
        self.was_idle = False
        """Whether another process has given this connection between two requests."""
        self.exchange: Exchange | None = None
        self._list = connections
        self._limits: ServingLimits = server.limits
        self._reading = _Reading.HEAD
        self._is_read = True
        self._waits_for_turn = False
        """Whether a large body waits until `take_turn` is called."""
        self._buffer = bytearray()
        self._checked_bytes = 0
        """How much of an incomplete head in the buffer has been looked at."""
        self._head: RequestHead | None = None
        self._body = bytearray()
        self._body_wire_bytes = 0
        self._body_started_at = 0.0
        self._chunks: ChunkedBody | None = None
        self._unread = b""
        """What came of a chunked body and waits for a turn."""
        self._requests_read = 0
        self._skipped_blank_line = False
        self._deadline: float | None = None
        self._drained: asyncio.Event | None = None
        self._socket_transport: Any = None
        """The transport that owns the socket. Under TLS the connection writes to another one."""
        self._writes_directly = False
        self._written_bytes = 0
        self._slow_reader = SlowReaderRule(server.limits.slow_reader_seconds, server.limits.buffered_bytes)

    # Called by Twisted

    def connectionMade(self) -> None:
        """Begin. Under TLS this comes before the handshake: both it and the headers must be done by the deadline."""
        self._list.opened(self)
        limits = self._limits
        if self.was_idle:
            self._requests_read = 1  # by the other process
        seconds = limits.keep_alive_seconds if self.was_idle else limits.header_timeout_seconds
        self._deadline = time.monotonic() + seconds
        transport = self.transport
        self.is_secure = ISSLTransport.providedBy(transport)
        self._socket_transport = innermost(transport)
        self._writes_directly = isinstance(transport, TcpTransport) and not self.is_secure
        transport.registerProducer(self, True)
        peer, host = transport.getPeer(), transport.getHost()
        if hasattr(peer, "port") and hasattr(host, "port"):
            self.client = (str(peer.host), peer.port)
            self.host = (str(host.host), host.port)
            if not self.was_taken:  # then the socket has its options
                # Not getHandle(): under TLS that is the OpenSSL connection.
                watch_for_lost_peer(self._socket_transport.socket, limits.peer_lost_seconds)
        if self.is_surplus:
            message = "This host has as many connections open as it may. Try again later."
            self.refuse(503, "too_many_connections", message)
        elif self.server.is_draining:
            self.drain()

    def dataReceived(self, data: bytes) -> None:
        """Read what has come."""
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
            else:
                self._wait_for_turn()
        except RequestRefusedError as refusal:
            self.refuse(refusal.status, refusal.event, refusal.message)
        except Exception:
            # Daphne silences Twisted's own log, so an exception would leave no trace.
            logger.exception("A connection failed while it was read")
            self.abort()

    def connectionLost(self, reason: object) -> None:
        """End: the connection is closed, by whichever side."""
        self._deadline = None
        self._buffer.clear()
        self._drop_body()
        self._leave_line()
        if self._drained is not None:
            self._drained.set()
        if self.exchange is not None:
            exchange, self.exchange = self.exchange, None
            exchange.disconnected()
        self._list.closed(self)

    def pauseProducing(self) -> None:
        """Hold back: Twisted keeps more than 64 KiB for this socket."""
        self.is_write_paused = True
        if self._drained is not None:
            self._drained.clear()
        self._regulate_reading()

    def resumeProducing(self) -> None:
        """Go on: Twisted keeps nothing any more."""
        self.is_write_paused = False
        if self._drained is not None:
            self._drained.set()
        self._regulate_reading()

    def stopProducing(self) -> None:
        """Do nothing: `connectionLost` is called as well."""

    # Called by an exchange

    def write(self, data: bytes) -> None:
        """Send what the kernel takes now, and let Twisted keep the rest.

        Twisted alone would wait for the socket to become writable, which costs a turn of the loop and two calls of
        epoll_ctl for each response. The socket nearly always is writable.
        """
        self._written_bytes += len(data)
        transport = self.transport
        if self._writes_directly and not self._held_bytes() and transport.connected and not transport.disconnecting:
            sent = transport.writeSomeData(data)
            # Anything but a number is the error of a lost connection. Twisted runs into it again and ends the
            # connection.
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
        """Go on with the next request, if the connection may have one."""
        self.exchange = None
        self.was_taken = False
        is_draining = self.server.is_draining
        if not reusable or (is_draining and not self._limits.has_successor):
            self._close(lingers=bool(self._buffer))
            return
        self._reading = _Reading.HEAD
        self._skipped_blank_line = False
        if is_draining:
            # The head of the response was written before, so the client knows nothing of an end. Its next request may
            # be on the way.
            seconds = DRAIN_ALLOWANCE_SECONDS
            self.server.give_idle_connections()
        else:
            seconds = self._limits.header_timeout_seconds if self._buffer else self._limits.keep_alive_seconds
        self._deadline = time.monotonic() + seconds
        self._regulate_reading()
        if self._buffer:
            self.dataReceived(b"")

    def abort(self) -> None:
        """Reset the connection. What is held for the client is lost."""
        self.transport.abortConnection()

    # Called by the server

    def take_turn(self) -> None:
        """Read on a large body that has waited for its turn."""
        self._waits_for_turn = False
        if self._unread:
            unread, self._unread = self._unread, b""
            self._body_wire_bytes -= len(unread)  # it is counted again
            self.dataReceived(unread)
        self._regulate_reading()

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
                self.refuse(408, "body_timeout", "The body took too long to arrive.")
            elif self._buffer:
                self.refuse(408, "header_timeout", "The headers took too long to arrive.")
            elif not self._requests_read:
                self._count("header_timeout")
                self._close(lingers=False)
            else:
                self._close(lingers=False)

    def drain(self) -> None:
        """Read no more requests. One that is arriving has half a second, one that is being served has its time."""
        if self.exchange is not None:
            self.exchange.close_after_response()
        elif self._reading is _Reading.DISCARDING:
            self._socket_transport.loseConnection()
        elif self.is_idle and self._requests_read and not self._limits.has_successor:
            self._close(lingers=False)
        elif self.is_idle and self.host is not None and self.host[1] == self._limits.peer_port:
            self._deadline = time.monotonic() + PEER_ALLOWANCE_SECONDS
        else:
            self._deadline = time.monotonic() + DRAIN_ALLOWANCE_SECONDS

    @property
    def is_idle(self) -> bool:
        """Whether nothing has come of a request, and the last one is answered."""
        return self._reading is _Reading.HEAD and not self._buffer

    @property
    def waits_for_successor(self) -> bool:
        """Whether this is an idle connection that another process could go on with."""
        return self.is_idle and isinstance(self.transport, LoopTransport) and not self.transport.is_closing

    def give_to_successor(self, handover: Handover) -> bool:
        """Give an idle connection to the process that serves instead of this one. Returns False if there is none.

        Raises:
            BlockingIOError: the other process must take others first.
        """
        transport = self.transport
        if not transport.can_be_given:  # the loop has yet to take it
            return True
        if not handover.give_to_successor(transport.socket):
            return False
        self._let_go(transport)
        return True

    def refuse(self, status: int, event: ServingEvent, message: str) -> None:
        """Answer `status` in the server's own name, count it and read nothing any more."""
        self._count(event)
        body = json.dumps({"error": message}).encode()
        self._head = None
        self._buffer.clear()
        self._drop_body()
        # It goes on counting as a large body until it is closed, or a crowd of them would be refused in one turn.
        self._waits_for_turn = False
        self.server.body_turns.skip(self)
        self.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, HTTPStatus(status).phrase.encode("ascii"), len(body), body)
        )
        self._close(lingers=True)

    # Requests

    def _read_head(self) -> None:
        buffer = self._buffer
        if buffer.startswith(b"\r") and not self._skipped_blank_line:
            # RFC 9112 section 2.2: ignore at least one empty line before the request line.
            if len(buffer) == 1:
                return
            if buffer.startswith(b"\r\n"):
                del buffer[:2]
                self._skipped_blank_line = True
        # A head that comes in many pieces is read once and not once for each piece.
        end = buffer.find(b"\r\n\r\n", max(0, self._checked_bytes - 3))
        if (end if end >= 0 else len(buffer)) > self._limits.head_bytes:
            message = f"The request line and headers are longer than {self._limits.head_bytes} bytes."
            raise RequestRefusedError(431, "bad_request", message)
        if end < 0:
            if is_malformed(buffer, self._checked_bytes):
                raise malformed("The request is not HTTP/1.1.")
            self._checked_bytes = len(buffer)
            return
        self._checked_bytes = 0
        head = parse_head(bytes(buffer[:end]), self._limits.head_fields)
        if head.body_bytes is not None and head.body_bytes > self._limits.body_bytes:
            message = f"The body is longer than {self._limits.body_bytes} bytes."
            raise RequestRefusedError(413, "body_too_large", message)
        if self.server.handover is not None and not self.was_taken and self._hand_over(self.server.handover, head):
            return
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
            self._chunks = ChunkedBody(self._body, self._limits.body_bytes)
            if len(rest) > SMALL_CHUNKS_BYTES:
                self._wait_for_turn()
                if self._waits_for_turn:
                    self._body_wire_bytes = len(rest)
                    self._unread = rest
                    return
        self._read_body(rest)

    def _hand_over(self, handover: Handover, head: RequestHead) -> bool:
        """Give the connection to the process that is to serve a request. Returns whether it has the connection now."""
        transport = self.transport
        if not isinstance(transport, LoopTransport) or not transport.can_be_given:
            return False
        if not handover.give(transport.socket, head, self.host, self._buffer):
            return False
        self._let_go(transport)
        return True

    def _let_go(self, transport: LoopTransport) -> None:
        self._deadline = None
        self._buffer.clear()
        transport.let_go()

    def _read_body(self, data: bytes) -> None:
        head = self._head
        assert head is not None
        self._body_wire_bytes += len(data)
        if self._unread:
            self._unread += data
            return
        limits = self._limits
        if not self.server.is_draining:
            seconds = limits.body_grace_seconds + self._body_wire_bytes / limits.body_bytes_per_second
            self._deadline = self._body_started_at + min(seconds, limits.body_timeout_seconds)
        if self._chunks is not None:
            self._read_chunks(self._chunks, data)
            return
        assert head.body_bytes is not None
        missing = head.body_bytes - len(self._body)
        if len(data) < missing:
            self._body += data
            if self._body:
                self._hold_body()
        elif self._body:
            self._start_exchange(bytes(self._body + data[:missing]), data[missing:])
        else:
            self._start_exchange(data[:missing], data[missing:])

    def _read_chunks(self, chunks: ChunkedBody, data: bytes) -> None:
        """Decode what has come, a little in one turn of the loop: it may be thousands of chunks."""
        position = 0
        while not chunks.feed(data[position : position + DECODED_AT_ONCE_BYTES]):
            position += DECODED_AT_ONCE_BYTES
            if self._body:
                self._hold_body()
            if position >= len(data):
                return
            if self._waits_for_turn:
                self._unread = data[position:]
                return
        self._start_exchange(bytes(self._body), chunks.rest + data[position + DECODED_AT_ONCE_BYTES :])

    def _hold_body(self) -> None:
        """Keep what has come of the body, at the cost of other bodies if all together hold too much.

        Raises:
            RequestRefusedError: this body is the one to be dropped.
        """
        bodies = self.server.unfinished_bodies
        bodies.note(self, len(self._body))
        self._wait_for_turn()
        while (surplus := bodies.pop_surplus()) is not None:
            message = "This host is reading too many large requests. Try again later."
            if surplus is self:
                raise RequestRefusedError(503, "too_many_bodies", message)
            surplus.refuse(503, "too_many_bodies", message)

    def _drop_body(self) -> bool:
        """Forget the body; False if there was none."""
        if self._chunks is None and not self._body:
            return False
        self._chunks, self._unread = None, b""
        if self._body:
            self._body = bytearray()
            self.server.unfinished_bodies.forget(self)
        return True

    def _wait_for_turn(self) -> None:
        """Read no more of a large body in this turn of the loop, if too many others are being read."""
        self._waits_for_turn = self.server.body_turns.wait(self)
        self._regulate_reading()

    def _leave_line(self) -> None:
        self._waits_for_turn = False
        self.server.body_turns.leave(self)

    def _start_exchange(self, body: bytes, rest: bytes) -> None:
        head, self._head = self._head, None
        assert head is not None
        self._deadline = None
        if self._drop_body():
            self._leave_line()
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
            # As Twisted does: a client that does not read its answers is not read either.
            reads = not self._waits_for_turn and (not self.is_write_paused or self._reading is _Reading.DISCARDING)
        if reads != self._is_read:
            self._is_read = reads
            if reads:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def _held_bytes(self) -> int:
        # Under TLS these are encrypted bytes, a few more than were written. OpenSSL itself keeps none.
        transport = self._socket_transport
        if isinstance(transport, LoopTransport):
            return transport.held_bytes
        return int(len(transport.dataBuffer) - transport.offset + transport._tempDataLen)

    def _is_slow_reader(self, now: float) -> bool:
        held = self._held_bytes()
        if not held:
            self._slow_reader.forget()
            return False
        return self._slow_reader.is_broken(now, taken_bytes=self._written_bytes - held, waiting_bytes=held)

    def _close(self, *, lingers: bool) -> None:
        """Close once everything held is sent; with `lingers`, wait for the client to close first."""
        self._deadline = None
        # While a producer is registered, Twisted waits for it instead of closing.
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
                # RFC 8446 section 6.1: whoever has sent its closure alert need not wait for the other's. A client that
                # has nothing to ask does not read, so its alert may never come.
                self._socket_transport.loseConnection()

    def _check_lingering(self, now: float) -> None:
        """Stop waiting for a client. Its time begins when it has taken everything that was held for it."""
        if self._held_bytes():
            return
        if self._deadline is None:
            self._deadline = now + LINGER_SECONDS
        elif now >= self._deadline:
            # Not a reset: the kernel may still have some of the answer to deliver.
            self._socket_transport.loseConnection()

    def _count(self, event: ServingEvent) -> None:
        logger.debug("The connection of %s was ended: %s", self.client, event)
        try:
            self.server.hooks.on_event(event)
        except Exception:
            logger.exception("The on_event hook failed")
