"""Passes HTTP exchanges on to the process that owns them, and takes those that others pass on.

A relayed exchange is the client's own, byte for byte, with headers that say who the client is. They are believed on the
peers' Unix socket only, whose folder belongs to the host's user, and an exchange that came that way is never passed on
again. Nothing is sent a second time once a byte has gone out: a call must not run twice.
"""

import asyncio
import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import httptools

from gateway.fleet.owner_keys import owner_key
from gateway.http.asgi import Message, Receive, Scope, Send
from gateway.http.responses import respond

HOLD_SECONDS: Final = 10.0
"""How long a request waits for an owner that is being started again."""

RETRY_SECONDS: Final = 0.05
"""How often it looks whether the owner is there."""

IDLE_SECONDS: Final = 30.0
"""How long an unused connection to a peer is kept; less than our Daphne's keep-alive time."""

MAX_IDLE: Final = 64
"""How many of them are kept for each peer."""

BUFFERED_BYTES: Final = 256 * 1024
"""How much of a response may wait here for its client."""

RETRY_AFTER_SECONDS: Final = 2

CLIENT_HEADER: Final = b"x-gumcp-client"
SCHEME_HEADER: Final = b"x-gumcp-scheme"
_OWN_HEADERS: Final = frozenset({CLIENT_HEADER, SCHEME_HEADER})
_HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}
)
"""Headers of one connection only. RFC 9110 section 7.6.1."""

_OWNED_METHODS: Final = frozenset({"GET", "POST", "DELETE"})

Application = Callable[[Scope, Receive, Send], Any]


class PeerGone(Exception):
    """The owner cannot be reached, or ended before it answered."""


class RelayingApplication:
    """The application of one of several processes: it serves what it owns, and relays the rest."""

    def __init__(self, inner: Application, find_owner: Callable[[bytes], str | None]) -> None:
        """`find_owner` returns the Unix socket of the owner of a key; None if that is this process."""
        self._inner = inner
        self._find_owner = find_owner
        self._peers: dict[str, _Peer] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or relay one connection."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
        elif scope.get("client") is None:
            await self._inner(_as_client_sent_it(scope), receive, send)
        else:
            # Of other methods every process says the same: preflights, and 405.
            key = owner_key(scope) if scope["method"] in _OWNED_METHODS else None
            path = None if key is None else self._find_owner(key)
            if path is None:
                await self._inner(_without_own_headers(scope), receive, send)
            else:
                await self._relay(path, scope, receive, send)

    async def _relay(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        peer = self._peers.get(path)
        if peer is None:
            peer = self._peers[path] = _Peer(path)
        exchange = _RelayedExchange(scope, receive, send)
        try:
            await exchange.run(peer)
        except PeerGone:
            if not exchange.is_started:
                body = json.dumps({"error": "The process that serves this is starting. Try again."}).encode()
                retry = [(b"retry-after", str(RETRY_AFTER_SECONDS).encode())]
                await respond(send, 503, body, b"application/json", retry)
            # What has begun is cut: the server resets a response that its application left unfinished.


class _RelayedExchange:
    """One exchange on its way through this process."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self.is_started = False
        """Whether the response has begun."""

    async def run(self, peer: "_Peer") -> None:
        """Pass the request on and the response back. Raises `PeerGone`."""
        first = await self._receive()
        if first["type"] == "http.disconnect":
            return
        connection = await peer.connect()
        is_whole = False
        try:
            connection.write(_head(self._scope, first))
            sending = asyncio.ensure_future(self._pass_request(connection, first))
            try:
                is_whole = await self._pass_response(connection, sending)
            finally:
                if not sending.done():
                    sending.cancel()
                    await asyncio.wait({sending})
        finally:
            if is_whole and connection.is_reusable:
                peer.give_back(connection)
            else:
                connection.abort()

    async def _pass_request(self, connection: "_PeerConnection", message: Message) -> None:
        """Pass the body on, then wait until the client leaves."""
        is_chunked = message.get("more_body", False) and not _content_length(self._scope)
        while True:
            data = message.get("body", b"")
            if data:
                connection.write(b"%x\r\n%b\r\n" % (len(data), data) if is_chunked else data)
                await connection.drained()
            if not message.get("more_body", False):
                break
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
        if is_chunked:
            connection.write(b"0\r\n\r\n")
        connection.has_whole_request = True
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _pass_response(self, connection: "_PeerConnection", sending: "asyncio.Future[None]") -> bool:
        """Pass the response back. Returns whether it is whole; the client may leave before."""
        while True:
            event = asyncio.ensure_future(connection.next_event())
            waiting: set[asyncio.Future[Any]] = {event, sending}
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not event.done():
                    return False
                message = event.result()
            finally:
                event.cancel()
            if message["type"] == "http.response.start":
                self.is_started = True
            await self._send(message)
            if message["type"] == "http.response.body" and not message["more_body"]:
                return True


class _Peer:
    """The connections to one other process."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: list[tuple[float, _PeerConnection]] = []
        self._inode = 0

    async def connect(self) -> "_PeerConnection":
        """A connection that nothing is under way on. Waits for a peer that is being started.

        Raises:
            PeerGone: it did not come up in time.
        """
        deadline = time.monotonic() + HOLD_SECONDS
        while True:
            try:
                # A successor has a socket of its own under the same name: connections lead to its predecessor.
                inode = os.stat(self._path).st_ino
                if inode != self._inode:
                    self._inode = inode
                    self._drop_idle()
                if (connection := self._take_idle()) is not None:
                    return connection
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_unix_connection(_PeerConnection, self._path)
            except OSError:
                if time.monotonic() >= deadline:
                    raise PeerGone from None
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return connection

    def _take_idle(self) -> "_PeerConnection | None":
        oldest = time.monotonic() - IDLE_SECONDS
        while self._idle:
            since, connection = self._idle.pop()
            if since >= oldest and connection.is_reusable:
                connection.begin()
                return connection
            connection.abort()
        return None

    def _drop_idle(self) -> None:
        for _, connection in self._idle:
            connection.abort()
        self._idle.clear()

    def give_back(self, connection: "_PeerConnection") -> None:
        """Keep a connection for another exchange."""
        if len(self._idle) >= MAX_IDLE:
            connection.abort()
        else:
            self._idle.append((time.monotonic(), connection))


class _PeerConnection(asyncio.Protocol):
    """One connection to a peer: requests go out as bytes, responses come back as ASGI messages."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._is_lost = False
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._arrived = asyncio.Event()
        self.begin()

    def begin(self) -> None:
        """Make ready for another exchange."""
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._events: deque[Message] = deque()
        self._buffered = 0
        self._is_answered = False
        self.has_whole_request = False
        """Whether the peer has been sent all of the request."""

    @property
    def is_reusable(self) -> bool:
        """Whether another exchange may follow."""
        return not self._is_lost and not self._events and self._is_answered and self.has_whole_request

    # -- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        self._may_write.set()
        self._arrived.set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    # -- httptools ---------------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            headers = [(name, value) for name, value in self._headers if name not in _HOP_BY_HOP]
            self._add({"type": "http.response.start", "status": status, "headers": headers})
        self._headers = []

    def on_body(self, data: bytes) -> None:
        self._buffered += len(data)
        if self._buffered > BUFFERED_BYTES and self._transport is not None:
            self._transport.pause_reading()
        self._add({"type": "http.response.body", "body": data, "more_body": True})

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._is_answered = self._parser.should_keep_alive()
            self._add({"type": "http.response.body", "body": b"", "more_body": False})

    def _add(self, message: Message) -> None:
        self._events.append(message)
        self._arrived.set()

    # -- What an exchange does ---------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes of a request."""
        if self._transport is not None and not self._is_lost:
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the peer has taken enough of what was written."""
        await self._may_write.wait()

    async def next_event(self) -> Message:
        """The next message of the response. Raises `PeerGone` if the connection ends before."""
        while not self._events:
            if self._is_lost:
                raise PeerGone
            self._arrived.clear()
            await self._arrived.wait()
        message = self._events.popleft()
        size = len(message.get("body", b""))
        if size:
            was_full = self._buffered > BUFFERED_BYTES
            self._buffered -= size
            if was_full and self._buffered <= BUFFERED_BYTES and self._transport is not None:
                with contextlib.suppress(RuntimeError):  # closed meanwhile
                    self._transport.resume_reading()
        return message

    def abort(self) -> None:
        """Close the connection at once. The peer takes that for the client's leaving."""
        if self._transport is not None:
            self._transport.abort()


def _head(scope: Scope, first: Message) -> bytes:
    """The head of a relayed request."""
    target = scope.get("raw_path") or scope["path"].encode()
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    lines = [b"%b %b HTTP/1.1" % (scope["method"].encode("latin-1"), target)]
    lines += [
        b"%b: %b" % (name, value)
        for name, value in scope["headers"]
        if name not in _HOP_BY_HOP and name not in _OWN_HEADERS
    ]
    if not _content_length(scope):
        if first.get("more_body", False):
            lines.append(b"transfer-encoding: chunked")
        elif first.get("body"):
            lines.append(b"content-length: %d" % len(first["body"]))
    host, port = scope["client"]
    lines.append(b"%b: %b %d" % (CLIENT_HEADER, str(host).encode(), port))
    lines.append(b"%b: %b" % (SCHEME_HEADER, scope.get("scheme", "http").encode()))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _content_length(scope: Scope) -> bool:
    return any(name == b"content-length" for name, _ in scope["headers"])


def _as_client_sent_it(scope: Scope) -> Scope:
    """The scope of a relayed request, as it was where the client connected."""
    said = {name: value for name, value in scope["headers"] if name in _OWN_HEADERS}
    inner = _without_own_headers(scope)
    host, _, port = said.get(CLIENT_HEADER, b"").decode("latin-1").rpartition(" ")
    if host and port.isdecimal():
        inner["client"] = (host, int(port))
    if SCHEME_HEADER in said:
        inner["scheme"] = said[SCHEME_HEADER].decode("latin-1")
    return inner


def _without_own_headers(scope: Scope) -> Scope:
    """The scope without headers that only a peer may send."""
    if not any(name in _OWN_HEADERS for name, _ in scope["headers"]):
        return dict(scope)
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name not in _OWN_HEADERS]}
