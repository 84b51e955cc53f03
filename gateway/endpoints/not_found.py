"""Answers paths below the MCP routes that are not MCP routes."""

from gateway.http.asgi import Receive, Scope, Send
from gateway.http.refusals import refuse


class NotFound:
    """Answers 404 as JSON."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await refuse(send, 404, "unknown_server", "Nothing here. Servers answer at /{server_name}/{session_key}.")
