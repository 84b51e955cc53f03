"""What all MCP endpoints share: who is calling which server, and errors as responses.

MCP endpoints are plain ASGI applications: a Channels consumer that reads a body costs a third of the throughput
(channels 4.3).
"""

from dataclasses import dataclass
from typing import Final

from mcp_types import INVALID_REQUEST

from gateway.access.hiding import scope_for_server
from gateway.access.identity import Identity, current_identity
from gateway.catalog.definitions import ServerDefinition
from gateway.exceptions import ClientDisconnected, GatewayError
from gateway.host.host import Host
from gateway.http.asgi import Receive, Scope, Send
from gateway.http.current_request import CurrentRequest, current_request
from gateway.http.refusals import refuse_error, refuse_message
from gateway.http.requests import client_address

SESSION_GONE: Final = "Session not found or expired"
"""The answer of guMCP's remote.py to an unknown session id. Clients match on this text."""


@dataclass(slots=True)
class McpRequest:
    """One request of a known caller to a server that is served."""

    definition: ServerDefinition
    identity: Identity
    scope: Scope
    receive: Receive
    send: Send
    _headers: dict[bytes, bytes] | None = None
    """The first of each name. Made when the first header is asked for."""

    def header(self, name: bytes) -> str | None:
        """The first header called `name` (lower case), or None."""
        if self._headers is None:
            self._headers = dict(reversed(self.scope["headers"]))
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def address(self) -> str:
        """The client's IP address; empty if it has none."""
        return client_address(self.scope)

    @property
    def scope_for_server(self) -> Scope:
        """The ASGI scope as the server's handlers may see it."""
        return scope_for_server(self.scope, self.identity)


class McpEndpoint:
    """An ASGI application that answers MCP requests. Subclasses implement `answer`."""

    answers_messages = False
    """Whether the response to a POST is the answer to the message in it."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        host = self._host
        if await host.origin_policy.refuse_foreign(scope, send):
            return
        try:
            host.doorkeeper.require_reachable(scope)
            captured = scope["url_route"]["kwargs"]
            server_name = captured["server_name"]
            current_request.set(CurrentRequest(server_name, scope))
            # Authenticate first: strangers learn nothing, not even which servers exist.
            identity = await host.doorkeeper.authenticator.identify(
                scope["headers"], client_address(scope), server_name, captured.get("session_key")
            )
            current_identity.set(identity)
            with identity.answering():
                await self.answer(McpRequest(host.availability.find(server_name), identity, scope, receive, send))
        except GatewayError as error:
            # Clients show the text of a JSON-RPC error to their user; of other bodies they show the status at most.
            await refuse_error(send, error, as_message=self.answers_messages and scope["method"] == "POST")
        except ClientDisconnected:
            return

    async def answer(self, request: McpRequest) -> None:
        """Answer `request`. `GatewayError` and `ClientDisconnected` may be raised until the response has started."""
        raise NotImplementedError


async def refuse_content_type(send: Send) -> None:
    """Answer 415: the body is not JSON."""
    message = "The body must be JSON: Content-Type: application/json."
    await refuse_message(send, 415, "unsupported_media_type", INVALID_REQUEST, message)
