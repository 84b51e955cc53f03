"""The HTTP+SSE door: a Channels consumer that holds one stream open.

Not here: the other doors (`endpoints`), the session's message loop (`transports.sse`).
"""

import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

from channels.consumer import AsyncConsumer

from gateway.access.identity import Identity
from gateway.catalog.discovery import ServerDefinition
from gateway.conf import conf
from gateway.http.asgi import Receive, Scope, Send
from gateway.http.requests import client_address
from gateway.transports.event_stream import EventStream, frame
from gateway.transports.sessions import Session
from gateway.transports.sse import SseTransport

if TYPE_CHECKING:
    from gateway.host.host import Host

logger = logging.getLogger(__name__)


class SseConsumer(AsyncConsumer):  # type: ignore[misc]
    """Holds one HTTP+SSE stream open.

    `__call__` replaces Channels' dispatch loop, which does not read while a handler runs and so would see a disconnect
    only after the stream's end (channels 4.3). Operators' commands reach the session through `control`, one listener
    for the whole process: a channel for each stream would make the in-memory layer scan all of them.
    """

    def __init__(self, host: "Host", definition: ServerDefinition, identity: Identity) -> None:
        self._host = host
        self._definition = definition
        self._identity = identity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one GET with a stream; returns when it has ended. Raises `GatewayError` before it has begun."""
        name, user_id = self._definition.name, self._identity.user_id
        logger.info("New SSE connection requested for %s with session: %s", name, user_id)
        self._host.require_room()
        async with self._host.instances.use(self._definition, self._identity) as instance:
            # Others took room while the instance was made.
            self._host.require_room()
            self._host.doorkeeper.authenticator.require_room(self._identity, client_address(scope))
            stream = EventStream(
                send, buffer_bytes=conf.stream_buffer_bytes, slow_reader_seconds=conf.slow_reader_seconds
            )
            session = Session(name, self._identity, "sse", client_address(scope))
            transport = SseTransport(instance.running, session, stream, max_backlog=conf.max_session_backlog)
            session.wire = transport
            session.on_end(stream.cut)
            with self._host.sessions.open(session), self._host.streams.open(stream, name):
                try:
                    await stream.start()
                    stream.write(frame(b"endpoint", _messages_url(scope, session).encode("ascii")))
                    transport.start()
                    logger.info("SSE connection established for %s session: %s", name, user_id)
                    await stream.run(receive)
                finally:
                    transport.stop()
                    logger.info("Closed SSE connection for %s session: %s", name, user_id)


def _messages_url(scope: Scope, session: Session) -> str:
    """Where this client posts: its own path as it wrote it, so that the key stays as it was encoded."""
    path = quote(scope["raw_path"].rstrip(b"/"), safe="/%:@!$&'()*+,;=~-._")
    return f"{path}/messages/?session_id={session.id}"
