"""Cross-origin access to the MCP routes: lets web pages of allowed origins call them and read the answers.

Lives here: preflights, and response headers for web pages. Not here: which origins are allowed (`origins`).

A response names the one origin that asked, never `*`. It does not allow the browser's own credentials (cookies): a page
sends its key as every client does.

Spec: https://fetch.spec.whatwg.org/#http-cors-protocol.
"""

import re
from typing import Final

from gateway.http.asgi import AsgiApplication, Message, Receive, Scope, Send
from gateway.http.origins import OriginPolicy
from gateway.http.requests import header
from gateway.http.responses import COMMON_HEADERS

CLIENT_HEADERS: Final = (
    b"authorization",
    b"content-type",
    b"accept",
    b"last-event-id",
    b"mcp-session-id",
    b"mcp-protocol-version",
    b"mcp-method",
    b"mcp-name",
    b"traceparent",
    b"tracestate",
)
"""Headers that MCP clients send. Those of 2026-07-28 add `mcp-param-…`, whose names depend on the tool."""

MAX_REQUESTED_BYTES: Final = 4096
"""The longest list of requested headers that is allowed: some hundred `mcp-param-…`."""

MAX_AGE_SECONDS: Final = 7200
"""How long browsers remember a preflight (Chromium's maximum). The request itself is checked each time."""

_HEADER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
"""RFC 9110 section 5.6.2 token, in lower case."""

_MCP_PREFIX: Final = b"mcp-"

_READABLE: Final = (
    (b"access-control-expose-headers", b"Mcp-Session-Id, WWW-Authenticate, Retry-After"),
    (b"vary", b"Origin"),
)


class CrossOriginAccess:
    """An MCP route with what browsers need. For everybody but web pages of allowed origins it changes nothing."""

    def __init__(self, application: AsgiApplication, policy: OriginPolicy, methods: bytes) -> None:
        """`methods`: those that the route answers, separated by commas."""
        self._application = application
        self._policy = policy
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        origin = self._policy.allowed_origin(scope)
        if origin is None:
            await self._application(scope, receive, send)
        elif scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None:
            await self._allow(origin, scope, send)
        else:

            async def send_readable(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message = {**message, "headers": [*message["headers"], *readable_headers(origin)]}
                await send(message)

            await self._application(scope, receive, send_readable)

    async def _allow(self, origin: bytes, scope: Scope, send: Send) -> None:
        """Answer a preflight.

        Browsers send it without the page's key, so it is answered before authentication, in the same way for every
        server and user. It does not count towards limits: those of an address are for requests with good keys, and a
        preflight costs less than a 404, which does not count either.
        """
        headers = [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-methods", self._methods),
            (b"access-control-allow-headers", _allowed_headers(scope, self._policy.allowed_headers)),
            (b"access-control-max-age", b"%d" % MAX_AGE_SECONDS),
            (b"vary", b"Origin"),
            *COMMON_HEADERS,
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def readable_headers(origin: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The response headers with which a page of `origin` can read the response."""
    return ((b"access-control-allow-origin", origin), *_READABLE)


def _allowed_headers(scope: Scope, more_headers: frozenset[bytes]) -> bytes:
    """The requested headers if all of them are allowed; otherwise the allowed ones, which stops the page's request.

    They are repeated because `mcp-param-…` cannot be listed beforehand, and `*` would not cover Authorization.
    """
    requested = b",".join(value for name, value in scope["headers"] if name == b"access-control-request-headers")
    names = [name.strip(b" \t").lower() for name in requested[: MAX_REQUESTED_BYTES + 1].split(b",")]
    allows_any = b"*" in more_headers
    are_allowed = len(requested) <= MAX_REQUESTED_BYTES and all(
        _HEADER.fullmatch(name)
        and (
            allows_any
            or name in CLIENT_HEADERS
            or name in more_headers
            or (name.startswith(_MCP_PREFIX) and name != _MCP_PREFIX)
        )
        for name in names
    )
    return b", ".join(names if are_allowed else (*CLIENT_HEADERS, *sorted(more_headers - {b"*"})))
