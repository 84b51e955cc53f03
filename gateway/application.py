"""The ASGI application of a host: its outermost layer, which every ASGI server calls.

Lives here: scope types, the host's start and stop as the ASGI server tells of them, and the last resort for errors.
"""

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from gateway.host import Host
from gateway.routing import HttpRouter, build_mcp_router
from gateway.transports.responses import Message, Receive, Scope, Send, respond

logger = logging.getLogger(__name__)

DJANGO_SEGMENTS: Final = frozenset({"health_check", "admin", "static", "favicon.ico", "robots.txt", "metrics"})
"""First path segments that Django answers. No server may take such a name (`discovery.RESERVED_NAMES`)."""


class Application:
    """Serves HTTP, follows the lifespan protocol where the ASGI server speaks it, refuses everything else."""

    def __init__(self, host: Host, django: Any) -> None:
        self.host = host
        self._http = HttpRouter(django, build_mcp_router(host), DJANGO_SEGMENTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "http":
            self.host.ensure_started()
            await self._serve_http(self.host.doorkeeper.proxies.client_scope(scope), receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            # ASGI 3.0 websocket: closing before accepting is answered 403.
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def note_start(message: Message) -> None:
            nonlocal has_started
            has_started = has_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._http(scope, receive, note_start)
        # Daphne's checks of its connections end for good if anything is raised once a response has started
        # (server.py:308 of 4.2), so nothing leaves here.
        except Exception:
            logger.exception("A request failed")
            if has_started:
                await send({"type": "http.response.body", "body": b""})
            else:
                await respond(send, 500, b'{"error": "Internal server error"}', b"application/json")

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.host.ensure_started()
                _drain_on_signals(self.host)
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.host.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return


def _drain_on_signals(host: Host) -> None:
    """Begin to drain as soon as the process is told to stop.

    uvicorn and its kin send `lifespan.shutdown` only after every connection has ended, and event streams do not end by
    themselves. So their signal handlers, which are in place by now, get a predecessor.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        previous = signal.getsignal(number)
        if callable(previous):
            signal.signal(number, _chained(host, previous))


def _chained(
    host: Host, previous: Callable[[int, FrameType | None], object]
) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        host.call_soon(host.drain)
        previous(number, frame)

    return handle
