"""Passes HTTP exchanges on to the process that owns them, and takes those that others pass on.

Within a machine this is the exception: a worker usually gives the whole connection to the owner
(`gateway.serving.handover`). What cannot be given away, and what another machine owns, is relayed.

A relayed exchange is the client's own, byte for byte, with headers that say who the client is. From a worker of the
same machine they are believed because they arrive on a Unix socket, whose folder belongs to the host's user. From
another node they arrive on the peer port, and a signature covers them (`signatures`). An exchange goes to another node
once at most, and to another worker of that node once at most.

Nothing is sent a second time once a byte has gone out: a call must not run twice. Until then a request waits for its
owner for a while, and is answered 503 if that does not come.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Final, cast

import httptools

from gateway import metrics
from gateway.fleet.owner_keys import owner_key
from gateway.fleet.ownership import Route
from gateway.fleet.signatures import BadSignature, Signatures
from gateway.http.asgi import Headers, Message, Receive, Scope, Send
from gateway.http.requests import until_disconnect
from gateway.http.responses import respond
from gateway.serving.head import RequestHead

HOLD_SECONDS: Final = 10.0
"""How long a request waits for a worker that is being started again."""

NODE_HOLD_SECONDS: Final = 1.5
"""How long a request waits for another node. A node that has died leaves the ring soon."""

LINK_SECONDS: Final = 1.5
"""How long another node may acknowledge nothing that was sent to it before the connection counts as lost."""

LOOK_SECONDS: Final = 0.1
"""How soon it may look again whether that is so."""

RETRY_SECONDS: Final = 0.05
"""How often it looks whether the owner is there."""

IDLE_SECONDS: Final = 30.0
"""How long an unused connection to a peer is kept; less than our Daphne's keep-alive time."""

MAX_IDLE: Final = 64
"""How many of them are kept for each peer."""

BUFFERED_BYTES: Final = 256 * 1024
"""How much of a response may wait here for its client."""

WATCH_SECONDS: Final = 0.05
"""How long an exchange runs before it is noticed whether its client leaves. A task for each would cost more."""

RETRY_AFTER_SECONDS: Final = 2

CLIENT_HEADER: Final = b"x-gumcp-client"
SCHEME_HEADER: Final = b"x-gumcp-scheme"
SIGNATURE_HEADER: Final = b"x-gumcp-signature"
_OWN_HEADERS: Final = frozenset({CLIENT_HEADER, SCHEME_HEADER, SIGNATURE_HEADER})
_HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}
)
"""Headers of one connection only. RFC 9110 section 7.6.1."""
_NOT_PASSED_ON: Final = _HOP_BY_HOP | _OWN_HEADERS | {b"content-length"}
"""Headers of a request that are left out or written anew."""

Application = Callable[[Scope, Receive, Send], Any]
FindRoute = Callable[..., Route | None]
"""As `Ownership.find`."""


class PeerGone(Exception):
    """The owner ended before it had answered."""


class RelayingApplication:
    """The application of one of several processes: it serves what it owns, and relays the rest."""

    def __init__(
        self,
        inner: Application,
        find: FindRoute,
        *,
        peer_port: int | None = None,
        signatures: Signatures | None = None,
        on_node_refuses: Callable[[], object] = lambda: None,
    ) -> None:
        """`peer_port`: where other nodes connect; only requests with a signature are answered there.

        `on_node_refuses` is called when a node does not accept connections, as one that leaves.
        """
        self._inner = inner
        self._find = find
        self._peer_port = peer_port
        self._signatures = signatures
        self._on_node_refuses = on_node_refuses
        self._peers: dict[Route, _Peer] = {}
        self._relayed = {
            is_node: metrics.relayed_requests.labels("node" if is_node else "worker") for is_node in (True, False)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or relay one connection."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
        elif scope.get("client") is None:
            await self._take_from_worker(scope, receive, send)
        elif self._peer_port is not None and (scope.get("server") or ("", None))[1] == self._peer_port:
            await self._take_from_node(scope, receive, send)
        else:
            scope = _without_own_headers(scope)
            key = _owner_key(scope)
            if key is None or self._find(key) is None:
                await self._inner(scope, receive, send)
            else:
                await self._relay(key, scope, receive, send)

    def find_worker(self, head: RequestHead, host: tuple[str, int] | None) -> str | None:
        """The path where another worker of this machine takes the connection of a request that it is to serve.

        None if this worker or another node is to serve it. `host`: the address at which the client called.
        """
        key = owner_key(head.method, head.target, head.headers)
        if key is None:
            return None
        is_from_node = host is not None and self._peer_port == host[1]
        route = self._find(key, is_from_node=is_from_node)
        return (route.handover or None) if route is not None else None

    def keep_nodes(self, addresses: Collection[str]) -> None:
        """Close the idle connections to nodes other than these. A node that leaves waits for that."""
        for route, peer in self._peers.items():
            if route.is_node and route.address not in addresses:
                peer.drop_idle()

    async def _take_from_worker(self, scope: Scope, receive: Receive, send: Send) -> None:
        # If there is a signature, the worker that took the request from another node has checked it.
        await self._serve(_as_client_sent_it(scope), receive, send, _header(scope, SIGNATURE_HEADER))

    async def _take_from_node(self, scope: Scope, receive: Receive, send: Send) -> None:
        signature = _header(scope, SIGNATURE_HEADER) or b""
        sent = _as_client_sent_it(scope)
        key = _owner_key(sent)
        try:
            if self._signatures is None:
                raise BadSignature("There are no other nodes.")
            self._signatures.check(signature, *_signed_parts(sent, key))
        except BadSignature as error:
            await _refuse(send, 403, str(error))
            return
        if key is None or self._find(key, is_from_node=True) is None:
            await self._serve(sent, receive, send, signature)
        else:
            await self._relay(key, sent, receive, send, signature)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, signature: bytes | None) -> None:
        """Serve a request that was relayed here. `signature`: the one with which it came from another node."""
        if signature is not None and self._signatures is not None:
            try:
                # Checked by the owner, not where it arrived: all requests of one caller end here, so that a replay
                # is noticed.
                self._signatures.use(signature)
            except BadSignature as error:
                await _refuse(send, 403, str(error))
                return
        await self._inner(scope, receive, send)

    async def _relay(
        self, key: bytes, scope: Scope, receive: Receive, send: Send, signature: bytes | None = None
    ) -> None:
        """Pass one exchange on. `signature`: the one with which it came from another node."""
        try:
            connected = await self._connect(key, is_from_node=signature is not None)
        except PeerGone:
            retry = [(b"retry-after", str(RETRY_AFTER_SECONDS).encode())]
            await _refuse(send, 503, "The process that serves this cannot be reached now. Try again.", retry)
            return
        if connected is None:
            await self._serve(scope, receive, send, signature)
            return
        peer, connection, route = connected
        self._relayed[route.is_node].inc()
        if route.is_node:
            assert self._signatures is not None
            signature = self._signatures.sign(*_signed_parts(scope, key))
        exchange = _RelayedExchange(scope, receive, send, signature)
        try:
            await exchange.run(peer, connection)
        except PeerGone:
            # The others lead to the same process, or over the same link.
            peer.drop_idle()
            if not exchange.is_started:
                # Without Retry-After: the call may have been carried out.
                await _refuse(send, 502, "The process that served this has ended. The request may have had its effect.")
            # What has begun is cut: the server resets a response that its application left unfinished.

    async def _connect(self, key: bytes, *, is_from_node: bool) -> "tuple[_Peer, _PeerConnection, Route] | None":
        """Connect to the owner of a key, and wait for it for a while; None if that is this process by now.

        The owner is looked up for each attempt: it may change meanwhile.

        Raises:
            PeerGone: nobody could be reached in time.
        """
        started = time.monotonic()
        while (route := self._find(key, is_from_node=is_from_node)) is not None:
            peer = self._peers.get(route)
            if peer is None:
                peer = self._peers[route] = _Peer(route)
            try:
                if (kept := peer.take_idle()) is not None:
                    return peer, kept, route
            except OSError:  # there is nobody under this name now
                pass
            left = started + (NODE_HOLD_SECONDS if route.is_node else HOLD_SECONDS) - time.monotonic()
            try:
                async with asyncio.timeout(max(left, RETRY_SECONDS)):
                    return peer, await peer.connect(), route
            except OSError as error:  # TimeoutError is one
                if route.is_node and isinstance(error, ConnectionRefusedError):
                    self._on_node_refuses()
                if left <= RETRY_SECONDS:
                    raise PeerGone from None
                await asyncio.sleep(RETRY_SECONDS)
        return None


class _RelayedExchange:
    """One exchange on its way through this process."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, signature: bytes | None) -> None:
        self._signature = signature
        self._scope = scope
        self._receive = receive
        self._send = send
        self.is_started = False
        """Whether the response has begun."""

    async def run(self, peer: "_Peer", connection: "_PeerConnection") -> None:
        """Pass the request on and the response back. Raises `PeerGone`."""
        body = await self._whole_body()
        if body is None:
            connection.abort()
            return
        is_whole = False
        watch = _Watch(self._receive, connection)
        try:
            connection.write(_head(self._scope, body, self._signature) + body)
            is_whole = await self._pass_response(connection)
        finally:
            watch.end()
            if is_whole and connection.is_reusable:
                peer.give_back(connection)
            else:
                connection.abort()

    async def _whole_body(self) -> bytes | None:
        """The body of the request; None if the client has left. Our Daphne has read all of it by now."""
        parts: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _pass_response(self, connection: "_PeerConnection") -> bool:
        """Pass the response back. Returns whether it is whole; the client may leave before."""
        while (message := await connection.next_event()) is not None:
            if message["type"] == "http.response.start":
                self.is_started = True
            await self._send(message)
            if message["type"] == "http.response.body" and not message["more_body"]:
                return True
        return False


class _Watch:
    """Notices that the client of an exchange leaves, or that the link to the node that serves it is cut.

    Most exchanges end sooner than it begins to look.
    """

    def __init__(self, receive: Receive, connection: "_PeerConnection") -> None:
        self._receive = receive
        self._connection = connection
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(WATCH_SECONDS, self._begin)

    def end(self) -> None:
        """Look no more."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._wait_for_client())
        if self._connection.link is not None:
            self._look_at_link(self._connection.link)

    async def _wait_for_client(self) -> None:
        await until_disconnect(self._receive)
        self._connection.stop_waiting()

    def _look_at_link(self, link: socket.socket) -> None:
        try:
            silent_seconds, is_probing = _silence(link)
        except OSError:  # the connection has ended
            return
        if is_probing and silent_seconds >= LINK_SECONDS:
            self._connection.abort()
        else:
            self._timer = self._loop.call_later(
                max(LOOK_SECONDS, LINK_SECONDS - silent_seconds), self._look_at_link, link
            )


class _Peer:
    """The connections to one other process."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._idle: list[tuple[float, _PeerConnection]] = []
        self._inode = 0

    def take_idle(self) -> "_PeerConnection | None":
        """A connection that was kept, if there is one. Raises `OSError`."""
        if not self._route.is_node:
            # A successor has a socket of its own under the same name: connections lead to its predecessor.
            inode = os.stat(self._route.address).st_ino
            if inode != self._inode:
                self._inode = inode
                self.drop_idle()
        oldest = time.monotonic() - IDLE_SECONDS
        while self._idle:
            since, connection = self._idle.pop()
            if since >= oldest and connection.is_reusable:
                connection.begin()
                return connection
            connection.abort()
        return None

    async def connect(self) -> "_PeerConnection":
        """A new connection. Raises `OSError`."""
        if self._route.is_node:
            return await self._connect_to_node()
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(_PeerConnection, self._route.address)
        return connection

    async def _connect_to_node(self) -> "_PeerConnection":
        host, _, port = self._route.address.rpartition(":")
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(_PeerConnection, host.strip("[]"), int(port))
        connection.link = transport.get_extra_info("socket")
        _notice_lost_link(connection.link)
        return connection

    def drop_idle(self) -> None:
        """Close the connections that are kept."""
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
        self.link: socket.socket | None = None
        """The socket, if the peer is another node."""
        self._is_lost = False
        self._arrived = asyncio.Event()
        self.begin()

    def begin(self) -> None:
        """Make ready for another exchange."""
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._events: deque[Message] = deque()
        self._buffered = 0
        self._is_answered = False
        self._has_client_left = False

    @property
    def is_reusable(self) -> bool:
        """Whether another exchange may follow."""
        return not self._is_lost and not self._events and self._is_answered

    # -- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do what asyncio's do, and are not instances of its classes.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        self._arrived.set()

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
            if self._events and self._events[-1]["type"] == "http.response.body":
                self._events[-1]["more_body"] = False
            else:
                self._add({"type": "http.response.body", "body": b"", "more_body": False})

    def _add(self, message: Message) -> None:
        self._events.append(message)
        self._arrived.set()

    # -- What an exchange does ---------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes of a request."""
        if self._transport is not None and not self._is_lost:
            self._transport.write(data)

    def stop_waiting(self) -> None:
        """Let `next_event` return: the client has left."""
        self._has_client_left = True
        self._arrived.set()

    async def next_event(self) -> Message | None:
        """The next message of the response; None if the client has left. Raises `PeerGone` if the connection ends."""
        while not self._events:
            if self._has_client_left:
                return None
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
        """Close the connection at once. To the peer it looks as if the client left."""
        if self._transport is not None:
            self._transport.abort()


def _notice_lost_link(link: socket.socket) -> None:
    """Let a connection to another node fail soon after the link is cut.

    While an answer is awaited the kernel needs two seconds at least for this; see `_silence`.
    """
    options = {"TCP_USER_TIMEOUT": int(LINK_SECONDS * 1000), "TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 2}
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if hasattr(socket, name):  # not every system has all of them
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _silence(link: socket.socket) -> tuple[float, bool]:
    """For how many seconds the other end has acknowledged nothing, and whether the kernel is asking it to (keepalive).

    Raises:
        OSError: the connection has ended.
    """
    if not hasattr(socket, "TCP_INFO") or sys.platform != "linux":
        return 0.0, False
    # struct tcp_info of linux/tcp.h: tcpi_probes and tcpi_last_ack_recv, which are milliseconds.
    probes, milliseconds = struct.unpack("=3xB52xI", link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60))
    return milliseconds / 1000, probes > 0


async def _refuse(send: Send, status: int, message: str, headers: Headers = ()) -> None:
    await respond(send, status, json.dumps({"error": message}).encode(), b"application/json", headers)


def _owner_key(scope: Scope) -> bytes | None:
    return owner_key(scope["method"], scope.get("raw_path") or scope["path"].encode(), scope["headers"])


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    found: bytes | None = next((value for name, value in scope["headers"] if name == wanted), None)
    return found


def _target(scope: Scope) -> bytes:
    target: bytes = scope.get("raw_path") or scope["path"].encode()
    return target + b"?" + scope["query_string"] if scope["query_string"] else target


def _client(scope: Scope) -> bytes:
    host, port = scope["client"] or ("", 0)
    return b"%b %d" % (str(host).encode(), port)


def _signed_parts(scope: Scope, key: bytes | None) -> tuple[bytes, ...]:
    """What another node must not change: what the request is, whose it is, and where it comes from."""
    scheme = str(scope.get("scheme", "http")).encode()
    return scope["method"].encode("latin-1"), _target(scope), _client(scope), scheme, key or b""


def _head(scope: Scope, body: bytes, signature: bytes | None) -> bytes:
    """The head of a relayed request."""
    lines = [b"%b %b HTTP/1.1" % (scope["method"].encode("latin-1"), _target(scope))]
    lines += [b"%b: %b" % (name, value) for name, value in scope["headers"] if name not in _NOT_PASSED_ON]
    if body:
        lines.append(b"content-length: %d" % len(body))
    lines.append(b"%b: %b" % (CLIENT_HEADER, _client(scope)))
    if signature is not None:
        lines.append(b"%b: %b" % (SIGNATURE_HEADER, signature))
    lines.append(b"%b: %b" % (SCHEME_HEADER, scope.get("scheme", "http").encode()))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _as_client_sent_it(scope: Scope) -> Scope:
    """The scope of a relayed request, as it was where the client connected."""
    said = {name: value for name, value in scope["headers"] if name in _OWN_HEADERS}
    inner = dict(_without_own_headers(scope))
    # Not the address at which a peer connected: that says nothing about where the client did.
    inner["server"] = None
    host, _, port = said.get(CLIENT_HEADER, b"").decode("latin-1").rpartition(" ")
    if host and port.isdecimal():
        inner["client"] = (host, int(port))
    if SCHEME_HEADER in said:
        inner["scheme"] = said[SCHEME_HEADER].decode("latin-1")
    return inner


def _without_own_headers(scope: Scope) -> Scope:
    """The scope without headers that only a peer may send."""
    if _OWN_HEADERS.isdisjoint([name for name, _ in scope["headers"]]):
        return scope
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name not in _OWN_HEADERS]}
