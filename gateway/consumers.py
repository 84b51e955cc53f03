"""The doors of the MCP routes: HTTP in, HTTP out. They resolve who is calling what, and hand over to the transports.

`SessionEndpoint` answers the session URL and passes event streams on to the Channels consumer `SseConsumer`;
`MessagesEndpoint` takes what HTTP+SSE clients post. The endpoints are plain ASGI applications: a Channels consumer
that reads a body costs a third of the throughput (measured with channels 4.3).
"""

import logging
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, quote

from channels.consumer import AsyncConsumer

from gateway.conf import conf
from gateway.discovery import ServerDefinition
from gateway.exceptions import ClientDisconnected, GatewayError
from gateway.identity import Identity, parse_session_key
from gateway.sessions import Session
from gateway.transports.event_stream import EventStream, frame
from gateway.transports.messages import parse_message
from gateway.transports.responses import (
    Receive,
    Scope,
    Send,
    has_media_type,
    read_body,
    refuse,
    refuse_error,
    refuse_method,
    respond,
)
from gateway.transports.sse import SseTransport

if TYPE_CHECKING:
    from gateway.host import Host

logger = logging.getLogger(__name__)

SESSION_GONE: Final = "Session not found or expired"
"""What the ancestor says of an unknown session; clients match on it."""


def resolve(host: "Host", scope: Scope) -> tuple[ServerDefinition, Identity]:
    """Which server a request is for, and who is calling.

    Raises:
        UnknownServer, InvalidSessionKey
    """
    captured = scope["url_route"]["kwargs"]
    return host.registry.get(captured["server_name"]), parse_session_key(captured["session_key"])


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
        """Answer one GET with a stream; returns when it has ended."""
        name, user_id = self._definition.name, self._identity.user_id
        logger.info("New SSE connection requested for %s with session: %s", name, user_id)
        async with self._host.instances.use(self._definition, self._identity) as instance:
            stream = EventStream(
                send, buffer_bytes=conf.stream_buffer_bytes, slow_reader_seconds=conf.slow_reader_seconds
            )
            session = Session(name, self._identity, "sse", client_address(scope))
            transport = SseTransport(instance.running, session, stream, max_backlog=conf.max_session_backlog)
            session.deliver = transport.deliver
            session.on_end(stream.close)
            with self._host.sessions.open(session), self._host.streams.open(stream, name):
                try:
                    await stream.start()
                    stream.write(frame(b"endpoint", self._messages_url(scope, session).encode("ascii")))
                    transport.start()
                    logger.info("SSE connection established for %s session: %s", name, user_id)
                    await stream.run(receive)
                finally:
                    transport.stop()
                    logger.info("Closed SSE connection for %s session: %s", name, user_id)

    @staticmethod
    def _messages_url(scope: Scope, session: Session) -> str:
        """Where this client posts: its own path as it wrote it, so that the key stays as it was encoded."""
        path = quote(scope["raw_path"].rstrip(b"/"), safe="/%:@!$&'()*+,;=~-._")
        return f"{path}/messages/?session_id={session.id}"


class SessionEndpoint:
    """`/{server_name}/{session_key}`: GET opens an HTTP+SSE stream."""

    def __init__(self, host: "Host") -> None:
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if await self._host.origin_policy.refuse_foreign(scope, send):
            return
        try:
            definition, identity = resolve(self._host, scope)
            if scope["method"] != "GET":
                await refuse_method(send, "GET")
                return
            await SseConsumer(self._host, definition, identity)(scope, receive, send)
        except GatewayError as error:
            await refuse_error(send, error)


class MessagesEndpoint:
    """`/{server_name}/{session_key}/messages/?session_id=…`: takes one message for an HTTP+SSE session."""

    def __init__(self, host: "Host") -> None:
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: 202 once the message is on its way to the server; answers go to the stream."""
        if await self._host.origin_policy.refuse_foreign(scope, send):
            return
        try:
            definition, identity = resolve(self._host, scope)
            if scope["method"] != "POST":
                await refuse_method(send, "POST")
                return
            session = self._host.sessions.find(_session_id(scope), definition.name, identity, "sse")
            if session is None:
                await refuse(send, 404, "unknown_session", SESSION_GONE)
                return
            if not has_media_type(scope, b"content-type", "application/json"):
                await refuse(
                    send, 415, "unsupported_media_type", "The body must be JSON: Content-Type: application/json."
                )
                return
            session.deliver(parse_message(await read_body(scope, receive, conf.max_body_bytes)), scope)
            await respond(send, 202, b"Accepted", b"text/plain; charset=utf-8")
        except GatewayError as error:
            await refuse_error(send, error)
        except ClientDisconnected:
            return


class NotFound:
    """Everything under the MCP routes that is none of them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404 as JSON."""
        await refuse(send, 404, "unknown_server", "Nothing here. Servers answer at /{server_name}/{session_key}.")


def client_address(scope: Scope) -> str:
    """The client's IP address, or nothing where it has none."""
    client: Any = scope.get("client")
    return str(client[0]) if client else ""


def _session_id(scope: Scope) -> str:
    query: bytes = scope.get("query_string", b"")
    # The form every client sends; anything else takes the long way.
    if query.startswith(b"session_id=") and query[11:].isalnum():
        return query[11:].decode("ascii")
    return parse_qs(query.decode("latin-1")).get("session_id", [""])[0]
