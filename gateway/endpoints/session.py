"""The session URL, `/{server_name}/{session_key}`: which protocol a request speaks, and what it must accept and send.

Spec: 2025-11-25 basic/transports, 2026-07-28 basic/transports/streamable-http, 2024-11-05 basic/transports.
"""

from mcp_types import INVALID_REQUEST

from gateway.endpoints.base import McpEndpoint, McpRequest, refuse_content_type
from gateway.endpoints.consumers import SseConsumer
from gateway.endpoints.stateless import StatelessRequests
from gateway.endpoints.streamable_http import SESSION_ID, StreamableHttpRequests
from gateway.host.host import Host
from gateway.http.origins import UNKNOWN_PAGE, is_of_unknown_page
from gateway.http.refusals import refuse, refuse_message, refuse_method
from gateway.http.requests import accepts, is_json
from gateway.transports.stateless import VERSION, is_stateless


class SessionEndpoint(McpEndpoint):
    """Serves HTTP+SSE, Streamable HTTP with sessions, and the stateless protocol on one URL."""

    answers_messages = True

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._streamable_http = StreamableHttpRequests(host)
        self._stateless = StatelessRequests(host, self._streamable_http)

    async def answer(self, request: McpRequest) -> None:
        """Pass `request` to the protocol it speaks."""
        scope = request.scope
        method = scope["method"]
        if method == "POST":
            if not await _is_acceptable(request):
                return
            if is_stateless(request.header(VERSION)):
                await self._stateless.post(request)
            else:
                await self._streamable_http.post(request)
        # The other methods belong to the handshake era, whatever version their header names.
        elif method == "GET":
            await self._get(request)
        elif method == "DELETE":
            await self._streamable_http.delete(request)
        else:
            await refuse_method(request.send, "GET, POST, DELETE")

    async def _get(self, request: McpRequest) -> None:
        if not accepts(request.scope, "text/event-stream"):
            message = "This resource is an event stream: Accept: text/event-stream."
            await refuse(request.send, 406, "not_acceptable", message)
        elif request.header(SESSION_ID):
            await self._streamable_http.get(request)
        elif not self._host.doorkeeper.authenticator.checks_keys and is_of_unknown_page(request.scope):
            # Where keys are checked, a page cannot know the URL.
            await refuse(request.send, 403, "bad_origin", UNKNOWN_PAGE)
        else:
            await SseConsumer(self._host, request)(request.scope, request.receive, request.send)


async def _is_acceptable(request: McpRequest) -> bool:
    """Check the media types of a POST; answer it if they are wrong."""
    scope = request.scope
    # Spec 2025-11-25 basic/transports#sending-messages-to-the-server rule 2: the client accepts both.
    if not (accepts(scope, "application/json") and accepts(scope, "text/event-stream")):
        message = "The client must accept both: Accept: application/json, text/event-stream."
        await refuse_message(request.send, 406, "not_acceptable", INVALID_REQUEST, message)
        return False
    if not is_json(scope):
        await refuse_content_type(request.send)
        return False
    return True
