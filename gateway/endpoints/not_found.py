"""Answers paths that lead nowhere."""

import json
from typing import Final

from gateway.http.asgi import Receive, Scope, Send
from gateway.http.refusals import refuse
from gateway.http.responses import respond

NO_OAUTH: Final = json.dumps(
    {
        "error": "This host does not use OAuth. Where it asks for a key, send it as Authorization: Bearer KEY, or in "
        "the URL: /{server_name}/{user_id}:{api_key}."
    }
).encode()


class NotFound:
    """Answers 404 as JSON to a path below the MCP routes that is not one of them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await refuse(send, 404, "unknown_server", "Nothing here. Servers answer at /{server_name}/{session_key}.")


class NoOAuth:
    """Answers 404 as JSON to the OAuth requests that many clients make before they connect.

    These are part of connecting: they need no key, count as no failure, and use up no limit.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await respond(send, 404, NO_OAUTH, b"application/json")
