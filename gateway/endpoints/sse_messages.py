"""Takes what HTTP+SSE clients post: `/{server_name}/{session_key}/messages/?session_id=…`.

Spec: 2024-11-05 basic/transports#http-with-sse. The stream itself: `consumers`.
"""

from urllib.parse import parse_qs

from gateway.endpoints.base import SESSION_GONE, McpEndpoint, McpRequest, refuse_content_type
from gateway.endpoints.batches import admit_batch
from gateway.endpoints.restoring import SseAdopter
from gateway.host.host import Host
from gateway.http.asgi import Scope
from gateway.http.refusals import refuse, refuse_method
from gateway.http.requests import is_json
from gateway.http.responses import respond
from gateway.jsonrpc import message_from
from gateway.transports.sessions import Session
from gateway.transports.wire import SseWire


class SseMessagesEndpoint(McpEndpoint):
    """Takes messages for HTTP+SSE sessions."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._adopter = SseAdopter(host)

    async def answer(self, request: McpRequest) -> None:
        """Answer 202 once the message is on its way to the server. The server's answer goes to the stream."""
        send = request.send
        if request.scope["method"] != "POST":
            await refuse_method(send, "POST")
            return
        session_id = query_session_id(request.scope)
        if self._find(session_id, request) is None:
            await refuse(send, 404, "unknown_session", SESSION_GONE)
            return
        if not is_json(request.scope):
            await refuse_content_type(send)
            return
        incoming = await self._host.message_reader.read(
            request.scope, request.receive, request.identity, request.address
        )
        with incoming.memory:
            # Look again: the session may have ended while the body arrived.
            session = self._find(session_id, request)
            if session is None:
                await refuse(send, 404, "unknown_session", SESSION_GONE)
                return
            if not session.is_established and not isinstance(incoming.json, list):
                await self._adopter.prepare(session, message_from(incoming.json), request)
            if isinstance(incoming.json, list) and session.takes_batches:
                batch = await admit_batch(self._host, request, incoming.json)
                session.wire.deliver_batch(batch, request.scope_for_server, incoming.memory)
            else:
                session.wire.deliver(message_from(incoming.json), request.scope_for_server, incoming.memory)
        await respond(send, 202, b"Accepted", b"text/plain; charset=utf-8")

    def _find(self, session_id: str, request: McpRequest) -> Session[SseWire] | None:
        return self._host.sessions.find(session_id, request.definition.name, request.identity, "sse")


def query_session_id(scope: Scope) -> str:
    """The session that a message is for, as its URL says; empty if it says nothing."""
    query: bytes = scope.get("query_string", b"")
    # All known clients send this form; it needs no parser.
    if query.startswith(b"session_id=") and query[11:].isalnum():
        return query[11:].decode("ascii")
    return parse_qs(query.decode("latin-1")).get("session_id", [""])[0]
