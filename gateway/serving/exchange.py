"""One request and its response: between the ASGI application and the connection.

What the bytes of a request mean is decided in `head`, and when they may come and go in `connection`. Here a whole
request becomes an ASGI scope, ASGI messages become a response, and the access line is written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote

from daphne.utils import parse_x_forwarded_for

from gateway.serving.head import RequestHead, malformed
from gateway.serving.limits import ServingHooks

logger = logging.getLogger(__name__)

Message = dict[str, Any]

_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
_BODILESS = frozenset((204, 304))
_PLAIN = frozenset((b"content-type", b"cache-control", b"x-content-type-options", b"mcp-session-id"))
"""Headers of most responses that mean nothing to the server itself."""
_DISCONNECT: Message = {"type": "http.disconnect"}


class ExchangeServer(Protocol):
    """What an exchange needs of the server. All but the hooks are Daphne's own."""

    hooks: ServingHooks
    root_path: str
    server_name: str
    action_logger: Any
    proxy_forwarded_address_header: str | None
    proxy_forwarded_port_header: str | None
    proxy_forwarded_proto_header: str | None

    def log_action(self, protocol: str, action: str, details: Message) -> None:
        """Write an access line."""


class Connection(Protocol):
    """What an exchange needs of the connection that its request came on."""

    client: tuple[str, int] | None
    host: tuple[str, int] | None
    is_secure: bool
    is_write_paused: bool

    @property
    def server(self) -> ExchangeServer:
        """The server that the connection was made to."""

    def write(self, data: bytes) -> None:
        """Send bytes of the response."""

    async def drained(self) -> None:
        """Wait until there is room for more."""

    def exchange_ended(self, *, reusable: bool) -> None:
        """Note that the response is whole."""

    def abort(self) -> None:
        """Reset the connection."""


class Exchange:
    """Serves one request of a connection.

    Making one raises `RequestRefusedError` if its forwarded headers are not text.
    """

    __slots__ = (
        "_body",
        "_bytes_announced",
        "_bytes_sent",
        "_client",
        "_connection",
        "_ended",
        "_head",
        "_is_chunked",
        "_is_head_written",
        "_receivers",
        "_reusable",
        "_scheme",
        "_start",
        "_started_at",
        "_status",
        "_target",
        "ended_at",
        "was_killed",
    )

    def __init__(self, connection: Connection, head: RequestHead, body: bytes) -> None:
        self._connection = connection
        self._head = head
        self._target = head.target.decode("ascii")
        self._client, self._scheme = _origin(connection, head)
        self._body: bytes | None = body
        self._started_at = time.monotonic()
        self._start: Message | None = None
        self._status: int | None = None
        self._is_head_written = False
        self._is_chunked = False
        self._reusable = head.keeps_alive
        self._bytes_announced: int | None = None
        self._bytes_sent = 0
        self._ended = False
        # Not an `asyncio.Event`, which takes 700 bytes more: each open stream has one of these.
        self._receivers: list[asyncio.Future[None]] = []
        """Calls of `receive` that wait for the end."""
        self.ended_at: float | None = None
        """When the response was whole or the client gone (monotonic seconds)."""
        self.was_killed = False

    def scope(self) -> Message:
        """The request as ASGI describes it."""
        head = self._head
        raw_path, _, query_string = head.target.partition(b"?")
        path, _, _ = self._target.partition("?")
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": head.http_version,
            "method": head.method,
            "path": unquote(path),
            "raw_path": raw_path,
            "root_path": self._connection.server.root_path,
            "scheme": self._scheme,
            "query_string": query_string,
            "headers": head.headers,
            "client": self._client,
            "server": self._connection.host,
        }

    async def receive(self) -> Message:
        """Return the body in one message, then wait for the end of the exchange. After that, return at once."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if not self._ended:
            receiver: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._receivers.append(receiver)
            try:
                await receiver
            finally:
                self._receivers.remove(receiver)
        return dict(_DISCONNECT)

    async def send(self, message: Message) -> None:
        """Pass on a response message once the socket has room for it. The empty end of a response needs no room.

        So an application can finish as soon as it has sent everything. The connection watches what the client has yet
        to read.
        """
        while self._connection.is_write_paused and not self._ended and not _is_empty_end(message):
            await self._connection.drained()
        if self._ended:
            # Yield, which Daphne does not: an application that sends in a loop and never receives would block the event
            # loop for ever.
            await asyncio.sleep(0)
            return
        message_type = message["type"]
        if message_type == "http.response.body":
            self._send_body(message.get("body", b""), message.get("more_body", False))
        elif message_type == "http.response.start":
            if self._start is not None:
                raise ValueError("HTTP response has already been started")
            self._status = int(message["status"])
            # Kept until the first body message, as ASGI requires: until then an exception can still become a 500.
            self._start = message
        else:
            raise ValueError(f"Cannot handle message type {message_type}")

    def application_ended(self, *, failure_status: int) -> None:
        """Finish the response of an application that raised, was cancelled or returned too early."""
        if self._ended:
            return
        if self._is_head_written:
            # The response is incomplete. A reset tells the client so; an orderly end could look like a complete body.
            self._end()
            self._connection.abort()
            return
        body = b'{"error": "%b"}' % _PHRASES[failure_status]
        self._status = failure_status
        self._start = {
            "status": failure_status,
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
        }
        self._send_body(body, more_body=False)

    def disconnected(self) -> None:
        """Tell the application that the client has left."""
        if not self._ended:
            self._end()

    def close_after_response(self) -> None:
        """Serve no other request on this connection, unless the head of the response has promised to."""
        if not self._is_head_written:
            self._reusable = False

    def _send_body(self, body: bytes, more_body: bool) -> None:
        if self._start is None:
            raise ValueError("HTTP response has not yet been started but got http.response.body")
        is_bodiless = self._head.method == "HEAD" or self._status in _BODILESS
        size = self._bytes_sent if is_bodiless else self._bytes_sent + len(body)
        prefix = b"" if self._is_head_written else self._response_head(self._start)
        if self._bytes_announced is not None and not is_bodiless:
            # With more bytes than announced, the client would read the surplus as the next response. With fewer, it
            # would wait for the rest.
            if size > self._bytes_announced:
                raise ValueError("HTTP response body is longer than its Content-Length")
            if size < self._bytes_announced and not more_body:
                raise ValueError("HTTP response body is shorter than its Content-Length")
        self._is_head_written = True
        self._bytes_sent = size
        if is_bodiless:
            data = prefix
        elif self._is_chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            data = b"".join((prefix, chunk, b"" if more_body else b"0\r\n\r\n"))
        else:
            data = prefix + body if prefix else body
        if data:
            self._connection.write(data)
        if not more_body:
            self._end()
            self._connection.exchange_ended(reusable=self._reusable)

    def _response_head(self, start: Message) -> bytes:
        status: int = start["status"]
        is_http_11 = self._head.http_version == "1.1"
        self._bytes_announced, self._is_chunked = None, False
        lines = [b"HTTP/%b %d %b" % (b"1.1" if is_http_11 else b"1.0", status, _PHRASES.get(status, b"Unknown"))]
        names_server = False
        for name, value in start.get("headers", ()):
            if name in _PLAIN:
                lines.append(b"%b: %b" % (name, value))
                continue
            lowered = name.lower()
            if lowered == b"content-length":
                self._bytes_announced = int(value)
            elif lowered == b"transfer-encoding":
                continue  # The server decides how the body is framed.
            elif lowered == b"connection":
                if b"close" in value.lower():
                    self._reusable = False
                continue
            elif lowered == b"server":
                names_server = True
            lines.append(b"%b: %b" % (name, value))
        if not names_server and self._connection.server.server_name:
            lines.append(b"server: " + self._connection.server.server_name.encode("latin-1"))
        if is_http_11 and self._bytes_announced is None and self._head.method != "HEAD" and status not in _BODILESS:
            self._is_chunked = True
            lines.append(b"transfer-encoding: chunked")
        if not self._reusable and is_http_11:
            lines.append(b"connection: close")
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1 or b"\0" in head:
            raise ValueError("HTTP response header holds CR, LF or NUL")
        return head + b"\r\n\r\n"

    def _end(self) -> None:
        self._ended = True
        self.ended_at = time.monotonic()
        self._body = None
        for receiver in self._receivers:
            if not receiver.done():
                receiver.set_result(None)
        server = self._connection.server
        if server.action_logger is None:
            return
        try:
            server.log_action(
                "http",
                "complete",
                {
                    "path": server.hooks.redact(self._target),
                    "status": self._status if self._is_head_written else None,
                    "method": self._head.method,
                    "client": "{}:{}".format(*self._client) if self._client else None,
                    "time_taken": time.monotonic() - self._started_at,
                    "size": self._bytes_sent,
                    "headers": self._head.headers,
                },
            )
        except Exception:
            # A full disk under the access log, or a redaction that fails, must not end the response.
            logger.exception("An access line could not be written")


def _is_empty_end(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("body") and not message.get("more_body", False)


def _origin(connection: Connection, head: RequestHead) -> tuple[tuple[str, int] | None, str]:
    """Client and scheme of a request: the connection's, or what a proxy says where Daphne is told to believe it."""
    server = connection.server
    scheme = "https" if connection.is_secure else "http"
    if not server.proxy_forwarded_address_header:
        return connection.client, scheme
    try:
        client, scheme = parse_x_forwarded_for(
            _by_name(head.headers),
            server.proxy_forwarded_address_header,
            server.proxy_forwarded_port_header,
            server.proxy_forwarded_proto_header,
            connection.client,
            scheme,
        )
    except UnicodeDecodeError:
        # Ignoring the header would take the client for the proxy.
        raise malformed("A forwarded header is not text.") from None
    return client, scheme


def _by_name(headers: list[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name, []).append(value)
    return values
