"""Opens HTTP+SSE streams: a Channels consumer that holds one stream open.

What HTTP+SSE clients post: `sse_messages`. The session's messages: `transports.sse`.

Spec: 2024-11-05 basic/transports#http-with-sse.
"""

import logging
from urllib.parse import quote

from channels.consumer import AsyncConsumer

from gateway.conf import conf
from gateway.endpoints.answering import new_stream
from gateway.endpoints.base import McpRequest
from gateway.endpoints.opening import open_session
from gateway.host.host import Host
from gateway.http.asgi import Receive, Scope, Send
from gateway.transports.event_stream import frame
from gateway.transports.sessions import Session
from gateway.transports.sse import SseTransport

logger = logging.getLogger(__name__)


class SseConsumer(AsyncConsumer):  # type: ignore[misc]
    """Holds one HTTP+SSE stream open.

    `__call__` replaces Channels' dispatch loop, which does not read while a handler runs and so would notice a
    disconnect only after the stream's end (channels 4.3). Operators' commands reach the session through
    `host.control`, one listener for the whole process: with a channel for each stream the in-memory layer would scan
    all of them.
    """

    def __init__(self, host: Host, request: McpRequest) -> None:
        self._host = host
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET with a stream. Returns when it has ended; raises `GatewayError` before it has started."""
        request = self._request
        name, user_id = request.definition.name, request.identity.user_id
        logger.info("New SSE connection requested for %s with session: %s", name, user_id)
        stream = new_stream(self._host, send)
        session: Session[SseTransport] = await open_session(
            self._host,
            request,
            "sse",
            lambda running, session: SseTransport(running, session, stream, max_backlog=conf.max_session_backlog),
        )
        try:
            with self._host.streams.open(stream, name):
                try:
                    await stream.start()
                    stream.write(frame(b"endpoint", _messages_url(scope, session).encode("ascii")))
                    session.wire.start()
                    logger.info("SSE connection established for %s session: %s", name, user_id)
                    await stream.run(receive)
                finally:
                    logger.info("Closed SSE connection for %s session: %s", name, user_id)
        finally:
            session.end()


def _messages_url(scope: Scope, session: Session[SseTransport]) -> str:
    """Where this client posts: its own path as it wrote it, so that the key stays encoded as it was."""
    path = quote(scope["raw_path"].rstrip(b"/"), safe="/%:@!$&'()*+,;=~-._")
    return f"{path}/messages/?session_id={session.id}"
