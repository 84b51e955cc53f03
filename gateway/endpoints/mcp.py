"""The doors of the MCP routes: they resolve who is calling what, check the request, and hand over to the transports.

`SessionEndpoint` answers the session URL for clients of every era; `MessagesEndpoint` takes what HTTP+SSE clients post.
They are plain ASGI applications: a Channels consumer that reads a body costs a third of the throughput (channels 4.3).

Spec: 2025-11-25 basic/transports, 2026-07-28 basic/transports/streamable-http.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from mcp_types import INVALID_REQUEST, JSONRPCRequest

from gateway import metrics
from gateway.access.hiding import scope_for_server
from gateway.access.identity import Identity, current_identity
from gateway.access.tool_scope import require_named_tool, require_tool
from gateway.catalog.discovery import ServerDefinition
from gateway.conf import conf
from gateway.endpoints.consumers import SseConsumer
from gateway.exceptions import ClientDisconnected, GatewayError, Unauthenticated
from gateway.http.asgi import Headers, Receive, Scope, Send
from gateway.http.refusals import refuse, refuse_error, refuse_message, refuse_method
from gateway.http.requests import accepts, client_address, header, is_json, read_body
from gateway.http.responses import respond
from gateway.jsonrpc import parse_message, require_json
from gateway.transports.event_stream import EventStream
from gateway.transports.link import INITIALIZE
from gateway.transports.reply import Reply
from gateway.transports.sessions import Session
from gateway.transports.sse import SseTransport
from gateway.transports.stateless import StatelessCall, is_stateless
from gateway.transports.streamable_http import StreamableHttpTransport

if TYPE_CHECKING:
    from gateway.host.host import Host

logger = logging.getLogger(__name__)

SESSION_GONE: Final = "Session not found or expired"
"""What the ancestor says of an unknown session; clients match on it."""

SESSION_ID: Final = b"mcp-session-id"
VERSION: Final = b"mcp-protocol-version"
LAST_EVENT_ID: Final = b"last-event-id"


class _Endpoint:
    """What the MCP routes share: origin, server, identity, and errors as answers."""

    answers_messages = False
    """Whether the answer to a POST is the answer to the message in it."""

    def __init__(self, host: "Host") -> None:
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if await self._host.origin_policy.refuse_foreign(scope, send):
            return
        try:
            self._host.doorkeeper.require_reachable(scope)
            captured = scope["url_route"]["kwargs"]
            server_name = captured["server_name"]
            # First of all: who may not call learns nothing, not even which servers there are.
            identity = await self._host.doorkeeper.authenticator.identify(
                scope["headers"], client_address(scope), server_name, captured.get("session_key")
            )
            current_identity.set(identity)
            with identity.answering():
                await self._answer(self._host.availability.find(server_name), identity, scope, receive, send)
        except GatewayError as error:
            # Clients show the user what a JSON-RPC error says, and of anything else the status at best.
            await refuse_error(send, error, as_message=self.answers_messages and scope["method"] == "POST")
        except ClientDisconnected:
            return

    async def _answer(
        self, definition: ServerDefinition, identity: Identity, scope: Scope, receive: Receive, send: Send
    ) -> None:
        raise NotImplementedError


class MessagesEndpoint(_Endpoint):
    """`/{server_name}/{session_key}/messages/?session_id=…`: takes one message for an HTTP+SSE session."""

    async def _answer(
        self, definition: ServerDefinition, identity: Identity, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """202 once the message is on its way to the server; what it answers goes to the stream."""
        if scope["method"] != "POST":
            await refuse_method(send, "POST")
            return
        session = self._host.sessions.find(_query_session_id(scope), definition.name, identity, "sse")
        if session is None:
            await refuse(send, 404, "unknown_session", SESSION_GONE)
            return
        if not is_json(scope):
            await _refuse_content_type(send)
            return
        message = parse_message(await read_body(scope, receive, conf.max_body_bytes))
        # It may have ended while the body came in.
        if self._host.sessions.find(session.id, definition.name, identity, "sse") is None:
            await refuse(send, 404, "unknown_session", SESSION_GONE)
            return
        assert isinstance(session.wire, SseTransport)
        session.wire.deliver(message, scope_for_server(scope, identity))
        await respond(send, 202, b"Accepted", b"text/plain; charset=utf-8")


class SessionEndpoint(_Endpoint):
    """`/{server_name}/{session_key}`: HTTP+SSE, Streamable HTTP with sessions, and the stateless protocol."""

    answers_messages = True

    async def _answer(
        self, definition: ServerDefinition, identity: Identity, scope: Scope, receive: Receive, send: Send
    ) -> None:
        method = scope["method"]
        if is_stateless(header(scope, VERSION)):
            if method != "POST":
                await refuse_method(send, "POST")
            elif await _is_acceptable(scope, send):
                await self._post_stateless(definition, identity, scope, receive, send)
        elif method == "POST":
            if await _is_acceptable(scope, send):
                await self._post(definition, identity, scope, receive, send)
        elif method == "GET":
            if not accepts(scope, "text/event-stream"):
                await refuse(
                    send, 406, "not_acceptable", "This resource is an event stream: Accept: text/event-stream."
                )
            elif not header(scope, SESSION_ID):
                await SseConsumer(self._host, definition, identity)(scope, receive, send)
            else:
                await self._get(definition, identity, scope, receive, send)
        elif method == "DELETE":
            await self._delete(definition, identity, scope, send)
        else:
            await refuse_method(send, "GET, POST, DELETE")

    # -- Handshake era -----------------------------------------------------------------------------------------------

    async def _post(
        self, definition: ServerDefinition, identity: Identity, scope: Scope, receive: Receive, send: Send
    ) -> None:
        session = None
        if header(scope, SESSION_ID):
            session = await self._find_session(definition, identity, scope, send)
            if session is None:
                return
        message = parse_message(await read_body(scope, receive, conf.max_body_bytes))
        if session is not None:
            # Once more: if it ended while the body came in, nobody would ever answer.
            session = await self._find_session(definition, identity, scope, send)
            if session is None:
                return
        else:
            if not isinstance(message, JSONRPCRequest) or message.method != INITIALIZE:
                # Not 404: by that clients decide to try another transport, or that their session is gone.
                await refuse_message(
                    send, 400, "missing_session_id", INVALID_REQUEST, "The Mcp-Session-Id header is missing."
                )
                return
            await self._initialize(definition, identity, message, scope, receive, send)
            return
        require_tool(identity, definition.name, message)
        transport = _streamable(session)
        with _request_of(session):
            if isinstance(message, JSONRPCRequest):
                reply = self._reply(send, _session_headers(session))
                transport.call(message, scope_for_server(scope, identity), reply)
                await self._run(reply, definition.name, receive)
            else:
                transport.deliver(message, scope_for_server(scope, identity))
                await respond(send, 202, b"", b"application/json", _session_headers(session))

    async def _initialize(
        self,
        definition: ServerDefinition,
        identity: Identity,
        message: JSONRPCRequest,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Open a session, and keep it if the server accepts `initialize` and the client is there to hear of it."""
        definition = self._require_still_open(definition, identity)
        self._host.require_room()
        instance = await self._host.instances.acquire(definition, identity)
        try:
            # Others took room while the instance was made.
            self._host.require_room()
            self._host.doorkeeper.authenticator.require_room(identity, client_address(scope))
        except GatewayError:
            self._host.instances.release(instance)
            raise
        session = Session(definition.name, identity, "streamable-http", client_address(scope))
        transport = StreamableHttpTransport(
            instance.running,
            session,
            max_backlog=conf.max_session_backlog,
            max_events=conf.max_kept_events,
            max_event_bytes=conf.max_kept_event_bytes,
        )
        session.wire = transport

        def close() -> None:
            transport.stop()
            self._host.sessions.remove(session)
            self._host.instances.release(instance)

        session.on_end(close)
        self._host.sessions.add(session)
        is_answered = False
        try:
            transport.start(on_end=lambda: self._host.loop.call_soon(session.end, "its message loop ended"))
            with _request_of(session):
                reply = self._reply(send, _session_headers(session))
                transport.call(message, scope_for_server(scope, identity), reply)
                is_answered = await self._run(reply, definition.name, receive)
        finally:
            if not (is_answered and transport.is_established):
                session.end("initialize failed")

    async def _get(
        self, definition: ServerDefinition, identity: Identity, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Open the session's standalone stream, or resume one that was lost."""
        session = await self._find_session(definition, identity, scope, send)
        if session is None:
            return
        stream = self._stream(send)
        transport = _streamable(session)
        last_event_id = header(scope, LAST_EVENT_ID)
        with _request_of(session):
            try:
                if last_event_id is not None:
                    if not await transport.resume(stream, last_event_id):
                        await refuse_message(send, 404, "unknown_event", INVALID_REQUEST, "Event not found or expired")
                        return
                elif not await transport.attach_standalone(stream):
                    message = "This session has its standalone stream open already."
                    await refuse_message(send, 409, "stream_conflict", INVALID_REQUEST, message)
                    return
                # Once more: what ends with a session is what it had then.
                if await self._find_session(definition, identity, scope, send) is None:
                    return
                with self._host.streams.open(stream, definition.name):
                    await stream.start(_session_headers(session))
                    await stream.run(receive)
            finally:
                stream.close()  # also where it never ran: attached for ever, it would be in the way of the next one

    async def _delete(self, definition: ServerDefinition, identity: Identity, scope: Scope, send: Send) -> None:
        if not header(scope, SESSION_ID):
            await refuse_message(
                send, 400, "missing_session_id", INVALID_REQUEST, "The Mcp-Session-Id header is missing."
            )
            return
        session = await self._find_session(definition, identity, scope, send)
        if session is not None:
            session.end("")
            await respond(send, 200, b"", b"application/json")

    async def _find_session(
        self, definition: ServerDefinition, identity: Identity, scope: Scope, send: Send
    ) -> Session | None:
        session_id = header(scope, SESSION_ID) or ""
        session = self._host.sessions.find(session_id, definition.name, identity, "streamable-http")
        if session is None:
            # Spec 2025-11-25 basic/transports#session-management rule 3: 404, so that the client opens a new one.
            await refuse_message(send, 404, "unknown_session", INVALID_REQUEST, SESSION_GONE)
        return session

    # -- Stateless era -----------------------------------------------------------------------------------------------

    async def _post_stateless(
        self, definition: ServerDefinition, identity: Identity, scope: Scope, receive: Receive, send: Send
    ) -> None:
        body = await read_body(scope, receive, conf.max_body_bytes)
        require_named_tool(identity, definition.name, header(scope, b"mcp-method"), header(scope, b"mcp-name"), body)
        message = require_json(body)
        definition = self._require_still_open(definition, identity)
        async with self._host.instances.use(definition, identity) as instance:
            # Once more: the factory may have taken its time, too.
            self._require_still_open(definition, identity)
            reply = self._reply(send, ())
            call = StatelessCall(instance.running, definition.name, scope_for_server(scope, identity), message, reply)

            def end_revoked() -> None:
                call.end(Unauthenticated())

            room = self._room_of(call, identity, scope)
            with room, self._host.stateless_calls.open(call), identity.closing(end_revoked):
                instance.activity.note(header(scope, b"mcp-method") == "tools/call")
                metrics.note_stateless_request(definition.name, header(scope, VERSION) or "")
                call.start()
                if call.is_listening and self._host.drain.is_begun:
                    call.stop_listening()
                try:
                    is_complete = await self._run(reply, definition.name, receive)
                except BaseException:
                    call.cancel()
                    raise
            if not is_complete or reply.is_stream:
                call.cancel()

    @contextmanager
    def _room_of(self, call: StatelessCall, identity: Identity, scope: Scope) -> Iterator[None]:
        """Take the room of a session while `call` listens, which lasts as long. Raises `GatewayError`."""
        if not call.is_listening:
            yield
            return
        self._host.require_room()
        address, authenticator = client_address(scope), self._host.doorkeeper.authenticator
        authenticator.require_room(identity, address)
        with authenticator.listening(identity, address):
            yield

    # -- Both --------------------------------------------------------------------------------------------------------

    def _require_still_open(self, definition: ServerDefinition, identity: Identity) -> ServerDefinition:
        """Check, after something that took its time, that the server and the key may be used; returns its newest code.

        Raises:
            Unauthenticated, UnknownServer, ServerDisabled
        """
        if identity.is_revoked:
            raise Unauthenticated
        return self._host.availability.find(definition.name)

    def _stream(self, send: Send) -> EventStream:
        return EventStream(send, buffer_bytes=conf.stream_buffer_bytes, slow_reader_seconds=conf.slow_reader_seconds)

    def _reply(self, send: Send, headers: Headers) -> Reply:
        return Reply(self._stream(send), send, headers)

    async def _run(self, reply: Reply, server_name: str, receive: Receive) -> bool:
        return await reply.run(
            receive,
            silence_seconds=conf.ping_seconds,
            counted=lambda: self._host.streams.open(reply.stream, server_name),
        )


class NotFound:
    """Everything under the MCP routes that is none of them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404 as JSON."""
        await refuse(send, 404, "unknown_server", "Nothing here. Servers answer at /{server_name}/{session_key}.")


@contextmanager
def _request_of(session: Session) -> Iterator[None]:
    """Count a request of `session` while it is answered: a session with none expires when idle."""
    session.open_requests += 1
    try:
        yield
    finally:
        session.open_requests -= 1
        session.touch()


def _streamable(session: Session) -> StreamableHttpTransport:
    assert isinstance(session.wire, StreamableHttpTransport)
    return session.wire


def _session_headers(session: Session) -> Headers:
    return ((SESSION_ID, session.id.encode("ascii")),)


async def _is_acceptable(scope: Scope, send: Send) -> bool:
    """Check what a POST has and wants; answers it if that will not do."""
    # Spec 2025-11-25 basic/transports#sending-messages-to-the-server rule 2: the client accepts both.
    if not (accepts(scope, "application/json") and accepts(scope, "text/event-stream")):
        message = "The client must accept both: Accept: application/json, text/event-stream."
        await refuse_message(send, 406, "not_acceptable", INVALID_REQUEST, message)
        return False
    if not is_json(scope):
        await _refuse_content_type(send)
        return False
    return True


async def _refuse_content_type(send: Send) -> None:
    message = "The body must be JSON: Content-Type: application/json."
    await refuse_message(send, 415, "unsupported_media_type", INVALID_REQUEST, message)


def _query_session_id(scope: Scope) -> str:
    query: bytes = scope.get("query_string", b"")
    # The form every client sends; anything else takes the long way.
    if query.startswith(b"session_id=") and query[11:].isalnum():
        return query[11:].decode("ascii")
    return parse_qs(query.decode("latin-1")).get("session_id", [""])[0]
