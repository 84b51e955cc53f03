"""Streamable HTTP of the handshake era: requests that open, use and end a session.

Spec: 2025-11-25 basic/transports#streamable-http. The session's messages and streams: `transports.streamable_http`.
"""

from functools import partial
from typing import Any, Final

from mcp_types import INVALID_REQUEST, JSONRPCRequest

from gateway.access.tool_scope import require_tool
from gateway.endpoints.answering import new_reply, new_stream, run_reply
from gateway.endpoints.base import SESSION_GONE, McpRequest
from gateway.endpoints.batches import admit_batch
from gateway.endpoints.opening import open_session, require_still_open
from gateway.endpoints.restoring import LOOP_ENDED, SessionRestorer, new_transport
from gateway.host.host import Host
from gateway.http.asgi import Headers
from gateway.http.refusals import refuse_message
from gateway.http.responses import respond
from gateway.jsonrpc import INITIALIZE, JSONRPCMessage, message_from
from gateway.transports.message_budget import MessageMemory
from gateway.transports.message_reader import Incoming
from gateway.transports.sessions import Session, WireT
from gateway.transports.streamable_http import StreamableHttpTransport
from gateway.transports.wire import StreamableHttpWire

SESSION_ID: Final = b"mcp-session-id"
LAST_EVENT_ID: Final = b"last-event-id"

NOT_ESTABLISHED: Final = "initialize failed"
"""Why a session ended whose `initialize` was refused or whose client left before the answer."""


class StreamableHttpRequests:
    """Answers the POST, GET and DELETE requests of handshake-era sessions."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._restorer = SessionRestorer(host)

    async def post(self, request: McpRequest) -> None:
        """Take one message: `initialize` opens a session, everything else belongs to one."""
        has_session = bool(request.header(SESSION_ID))
        if has_session and await self._find_or_refuse(request) is None:
            return
        incoming = await self._host.message_reader.read(
            request.scope, request.receive, request.identity, request.address
        )
        with incoming.memory:
            if not has_session:
                await self.initialize(message_from(incoming.json), incoming.memory, request)
                return
            # Look again: if the session ended while the body arrived, nobody would ever answer.
            session = await self._find_or_refuse(request)
            if session is None:
                return
            with _RequestOf(session):
                if isinstance(incoming.json, list) and session.takes_batches:
                    await self._take_batch(incoming, session, request)
                else:
                    await self._take(incoming, session, request)

    async def _take(self, incoming: Incoming, session: Session[StreamableHttpWire], request: McpRequest) -> None:
        message = message_from(incoming.json)
        require_tool(request.identity, request.definition.name, message)
        if isinstance(message, JSONRPCRequest):
            reply = new_reply(self._host, request.send, _session_headers(session))
            session.wire.call(message, request.scope_for_server, incoming.memory, reply)
            await run_reply(self._host, request, reply)
        else:
            session.wire.deliver(message, request.scope_for_server, incoming.memory)
            await respond(request.send, 202, b"", b"application/json", _session_headers(session))

    async def _take_batch(self, incoming: Incoming, session: Session[StreamableHttpWire], request: McpRequest) -> None:
        batch = await admit_batch(self._host, request, incoming.json)
        reply = new_reply(self._host, request.send, _session_headers(session))
        if session.wire.call_batch(batch, request.scope_for_server, incoming.memory, reply):
            await run_reply(self._host, request, reply)
        else:
            await respond(request.send, 202, b"", b"application/json", _session_headers(session))

    async def initialize(self, message: JSONRPCMessage, memory: MessageMemory, request: McpRequest) -> None:
        """Open a session. Keep it if the server accepts `initialize` and the client receives the answer."""
        if not isinstance(message, JSONRPCRequest) or message.method != INITIALIZE:
            # Not 404: clients would try another transport, or take their session for lost.
            await _refuse_without_session_id(request)
            return
        request.definition = require_still_open(self._host, request)
        session: Session[StreamableHttpTransport] = await open_session(
            self._host, request, "streamable-http", partial(new_transport, self._host)
        )
        is_answered = False
        try:
            session.wire.start(on_end=lambda: self._host.loop.call_soon(session.end, LOOP_ENDED))
            with _RequestOf(session):
                reply = new_reply(self._host, request.send, _session_headers(session))
                session.wire.call(message, request.scope_for_server, memory, reply)
                is_answered = await run_reply(self._host, request, reply)
        finally:
            if not (is_answered and session.wire.is_established):
                session.end(NOT_ESTABLISHED)

    async def get(self, request: McpRequest) -> None:
        """Open the session's standalone stream, or resume a stream that was lost."""
        session = await self._find_or_refuse(request)
        if session is None:
            return
        stream = new_stream(self._host, request.send)
        last_event_id = request.header(LAST_EVENT_ID)
        with _RequestOf(session):
            try:
                if last_event_id is not None:
                    if not await session.wire.resume(stream, last_event_id):
                        message = "Event not found or expired"
                        await refuse_message(request.send, 404, "unknown_event", INVALID_REQUEST, message)
                        return
                elif not await session.wire.attach_standalone(stream):
                    message = "This session has its standalone stream open already."
                    await refuse_message(request.send, 409, "stream_conflict", INVALID_REQUEST, message)
                    return
                # Look again: a stream that was attached after the session's end would never close.
                if await self._find_or_refuse(request) is None:
                    return
                with self._host.streams.open(stream, request.definition.name):
                    await stream.start(_session_headers(session))
                    await stream.run(request.receive)
            finally:
                # Also if the stream never ran: while it is attached, the session can have no other.
                stream.abandon()

    async def delete(self, request: McpRequest) -> None:
        """End a session."""
        if not request.header(SESSION_ID):
            await _refuse_without_session_id(request)
            return
        session = await self._find_or_refuse(request)
        if session is not None:
            session.end()
            await respond(request.send, 200, b"", b"application/json")

    async def _find_or_refuse(self, request: McpRequest) -> Session[StreamableHttpWire] | None:
        """The caller's session. Answers 404 if there is none with this id."""
        session_id = request.header(SESSION_ID) or ""
        session = self._host.sessions.find(session_id, request.definition.name, request.identity, "streamable-http")
        if session is None:
            session = await self._restorer.restore(session_id, request)
        if session is None:
            # Spec 2025-11-25 basic/transports#session-management rule 3: 404, so that the client opens a new one.
            await refuse_message(request.send, 404, "unknown_session", INVALID_REQUEST, SESSION_GONE)
        return session


async def _refuse_without_session_id(request: McpRequest) -> None:
    message = "The Mcp-Session-Id header is missing."
    await refuse_message(request.send, 400, "missing_session_id", INVALID_REQUEST, message)


def _session_headers(session: Session[WireT]) -> Headers:
    return ((SESSION_ID, session.id.encode("ascii")),)


class _RequestOf:
    """Counts a request of `session` while it is answered: a session without one expires when it is idle."""

    __slots__ = ("_session",)

    def __init__(self, session: Session[Any]) -> None:
        self._session = session

    def __enter__(self) -> None:
        self._session.open_requests += 1

    def __exit__(self, *raised: object) -> None:
        self._session.open_requests -= 1
        self._session.touch()
