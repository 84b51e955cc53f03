"""A small HTTP server for one page that few clients read, in a thread of its own.

It is for pages such as the metrics, which must not depend on the ASGI server in use or share its connections. It
answers GET and HEAD, closes every connection after one response, and limits what clients can cost: their number, the
time that they take, and the part of the time that is spent on making responses.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

from gateway.http.asgi import Message, Receive, Scope, Send
from gateway.serving.head import RequestHead, RequestRefusedError, parse_head

logger = logging.getLogger(__name__)

CONNECTIONS: Final = 32
"""Open connections. For one more, the oldest is closed: well-behaved clients finish quickly."""

HEAD_BYTES: Final = 8 * 1024
HEAD_FIELDS: Final = 100
"""Request line and headers."""

CONNECTION_SECONDS: Final = 10.0
"""From connecting to the end of the response."""

REST_PER_WORK: Final = 4.0
"""After a response that took a second to make, no other is made for so many seconds. Making one takes time from the
rest of the process, and clients may ask as often as they like."""

RETRY_SECONDS: Final = 1.0
"""How long no connection is accepted after one could not be, which happens when the process has no descriptors left."""

JOIN_SECONDS: Final = 1.0
"""How long `stop` waits for the thread."""


class SmallServer:
    """Serves an ASGI application on a port. `start` and `stop` may be called from any thread, once each."""

    def __init__(self, application: Callable[[Scope, Receive, Send], Awaitable[None]], host: str, port: int) -> None:
        self._application = application
        self._address = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="small-server", daemon=True)
        self._is_stopped = asyncio.Event()
        self._connections: dict[asyncio.Task[None], None] = {}
        self._makes_response = asyncio.Lock()
        self._rests_until = 0.0

    def start(self) -> int:
        """Listen, and return the port.

        Raises:
            OSError: that is not possible.
        """
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        try:
            self._listener = socket.create_server(self._address, family=family, backlog=CONNECTIONS)
        except OSError:
            self._loop.close()
            raise
        self._listener.setblocking(False)
        port = int(self._listener.getsockname()[1])
        self._thread.start()
        return port

    def stop(self) -> None:
        """Close the port and all connections."""
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._is_stopped.set)
        self._thread.join(JOIN_SECONDS)

    # In the thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:
            logger.exception("A small server failed")
        finally:
            self._listener.close()
            self._loop.close()

    async def _serve(self) -> None:
        self._loop.add_reader(self._listener, self._accept)
        await self._is_stopped.wait()
        self._loop.remove_reader(self._listener)
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            logger.error("A connection could not be accepted: %s", error.strerror)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(RETRY_SECONDS, self._loop.add_reader, self._listener, self._accept)
            return
        connection.setblocking(False)
        if len(self._connections) >= CONNECTIONS:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.cancel()
        task = self._loop.create_task(self._serve_connection(connection))
        self._connections[task] = None
        # Not in the task itself: one that is cancelled before it has begun runs nothing.
        task.add_done_callback(functools.partial(self._ended, connection))

    def _ended(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._connections.pop(task, None)
        connection.close()

    async def _serve_connection(self, connection: socket.socket) -> None:
        # Its time is up, or its client is gone.
        with contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(CONNECTION_SECONDS):
                reader, writer = await asyncio.open_connection(sock=connection, limit=HEAD_BYTES)
                try:
                    writer.write(await self._answer(reader))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
                finally:
                    writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        """Read a request and return the whole response.

        Raises:
            asyncio.IncompleteReadError, OSError: the client has left.
        """
        try:
            received = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(431, [], _error(f"The request has more than {HEAD_BYTES} bytes of headers."))
        try:
            head = parse_head(received[:-4], HEAD_FIELDS)
            if head.method not in ("GET", "HEAD"):
                return _response(405, [(b"allow", b"GET, HEAD")], _error("This port answers GET and HEAD."))
            return await self._run_application(head)
        except RequestRefusedError as refusal:
            return _response(refusal.status, [], _error(refusal.message))
        # The application's own failure. The next request may go well.
        except Exception:
            logger.exception("A request to a small server failed")
            return _response(500, [], _error("Internal server error"))

    async def _run_application(self, head: RequestHead) -> bytes:
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        path, _, query = head.target.partition(b"?")
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": head.http_version,
            "method": head.method,
            "path": path.decode("ascii"),
            "raw_path": path,
            "query_string": query,
            "headers": head.headers,
        }
        async with self._makes_response:
            await asyncio.sleep(self._rests_until - time.monotonic())
            started = time.monotonic()
            await self._application(scope, receive, send)
            ended = time.monotonic()
            self._rests_until = ended + (ended - started) * REST_PER_WORK
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return _response(sent[0]["status"], list(sent[0]["headers"]), body, is_head=head.method == "HEAD")


def _error(message: str) -> bytes:
    return json.dumps({"error": message}).encode()


def _response(status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, is_head: bool = False) -> bytes:
    if not any(name.lower() == b"content-type" for name, _ in headers):
        headers = [(b"content-type", b"application/json"), *headers]
    lines = [
        b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode("ascii")),
        *(b"%b: %b" % field for field in headers if field[0].lower() not in (b"content-length", b"connection")),
        b"content-length: %d" % len(body),
        b"connection: close",
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if is_head else body)
