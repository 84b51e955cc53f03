"""The ASGI application of a host: its outermost layer, which every ASGI server calls.

Lives here: the types of scopes, the host's start and stop when the ASGI server announces them, and the answer to errors
that nothing else has handled.
"""

import asyncio
import logging
import threading
from typing import Any

from gateway import metrics
from gateway.conf import conf
from gateway.endpoints.arriving_bodies import ArrivingBodies, ArrivingBody, OpenRequests
from gateway.endpoints.django_pages import DjangoPages
from gateway.endpoints.health import HealthEndpoint
from gateway.endpoints.live_events import LiveEvents
from gateway.endpoints.playground import PlaygroundEndpoint
from gateway.endpoints.routing import HttpRouter
from gateway.exceptions import TooManyConnections
from gateway.host.host import Host
from gateway.http.asgi import Headers, Message, Receive, Scope, Send
from gateway.http.cors import readable_headers
from gateway.http.refusals import refuse_error
from gateway.http.requests import client_address
from gateway.http.responses import respond
from gateway.serving.shutdown import ShutdownWatch
from gateway.serving.timetable import SHUTDOWN_MARGIN_SECONDS

logger = logging.getLogger(__name__)


class Application:
    """Serves HTTP, follows the lifespan protocol if the ASGI server speaks it, and refuses everything else."""

    def __init__(self, host: Host, django: Any) -> None:
        self.host = host
        pages = DjangoPages(django, host.origin_policy, conf.max_body_bytes)
        self._http = HttpRouter(host, HealthEndpoint(host, LiveEvents(host, PlaygroundEndpoint(host, pages))))
        self._bodies = ArrivingBodies()
        self._open_requests = OpenRequests(at_most=conf.max_connections, of_an_address=conf.max_connections_per_address)
        self._requests: set[asyncio.Task[Any]] = set()
        self._has_lifespan = False
        self._watch: ShutdownWatch | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "http":
            self.host.ensure_started()
            # From here on, the scope has the client's address and scheme, not those of a trusted proxy.
            scope = self.host.doorkeeper.proxies.client_scope(scope)
            if self._has_lifespan:
                await self._serve_cancellable(scope, receive, send)
            else:
                await self._serve_http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            # ASGI 3.0 websocket: closing before accepting is answered 403.
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = _Response(send)
        try:
            await self._http(scope, receive, response.send)
            await response.flush()
        # No exception may reach the ASGI server, which may do anything with it. Daphne stops checking its connections
        # for good if an exception comes after a response has started (server.py:308 of 4.2). Cancellation passes.
        except Exception:
            logger.exception("A request failed")
            metrics.request_failures.labels(response.progress).inc()
            # On every route: the 500 contains nothing that a web page may not read.
            origin = self.host.origin_policy.allowed_origin(scope)
            await response.fail(() if origin is None else readable_headers(origin))

    # -- Other ASGI servers than our Daphne ---------------------------------------------------------------------------

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._has_lifespan = True
                self.host.ensure_started()
                self._drain_on_signals()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.host.stop()
                if self._watch is not None:
                    self._watch.finish()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve_cancellable(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            counted = self._open_requests.enter(client_address(scope))
        except TooManyConnections as error:
            await refuse_error(send, error)
            return
        self._requests.add(task)
        try:
            await self._serve_http(scope, ArrivingBody(receive, self._bodies), send)
        finally:
            self._requests.discard(task)
            self._open_requests.leave(counted)

    def _drain_on_signals(self) -> None:
        """Begin to drain as soon as the process is told to stop, and make sure that it ends.

        uvicorn and other servers send `lifespan.shutdown` only after every connection has ended, and they wait without
        a limit. Event streams do not end by themselves. So the signals are noticed here too. The server's own handlers
        stay in place.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._watch = ShutdownWatch(
            lambda: self.host.loop.call_soon(self._drain), conf.shutdown_grace_seconds + SHUTDOWN_MARGIN_SECONDS
        )
        self._watch.install_beside()
        self._watch.freezes.start()

    def _drain(self) -> None:
        self.host.drain.begin()
        asyncio.get_running_loop().call_later(conf.shutdown_grace_seconds, self._cancel_requests)

    def _cancel_requests(self) -> None:
        for task in list(self._requests):
            task.cancel()


class _Response:
    """Notes how much of one response has been sent, and ends it after an error."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        """Kept until the first body message, as ASGI allows: until then an error can still become a 500."""
        self._headers: Headers = ()
        self.progress = "before_start"
        """How far the response has come: a label of `metrics.request_failures`."""

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if self._start is not None:
            await self.flush()
        elif message["type"] == "http.response.start" and self.progress == "before_start":
            self._start = message
            return
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.progress = "after_end"
        await self._send(message)

    async def flush(self) -> None:
        """Pass on the start, if it is still kept."""
        if self._start is not None:
            start, self._start = self._start, None
            self._headers = start["headers"]
            self.progress = "after_start"
            await self._send(start)

    async def fail(self, headers: Headers) -> None:
        """End the response as well as is still possible. Raises nothing: the connection itself may have failed.

        `headers` are for the 500, if one can still be sent.
        """
        try:
            if self.progress == "before_start":
                self._start = None
                await respond(self._send, 500, b'{"error": "Internal server error"}', b"application/json", headers)
            elif self.progress == "after_start" and self._is_event_stream():
                await self._send({"type": "http.response.body", "body": b""})
            # Any other body gets no end: the server then cuts the connection. An orderly end would tell the client that
            # half a page is a whole one (RFC 9112 section 8).
        except Exception:
            logger.debug("The response of a failed request could not be ended", exc_info=True)

    def _is_event_stream(self) -> bool:
        return any(
            name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in self._headers
        )
