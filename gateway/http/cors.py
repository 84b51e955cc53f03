"""Cross-origin access to the MCP routes: what lets web pages of allowed origins call them and read the answers.

Lives here: preflights, and the headers of answers to pages. Not here: which origins are allowed (`security`).

An answer names the one origin that asked, never `*`, and allows no credentials of the browser's own: a page puts its
key where every client does.

Spec: https://fetch.spec.whatwg.org/#http-cors-protocol.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.http.asgi import Message, Receive, Scope, Send
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
)
"""What MCP clients of all eras send. Those of 2026-07-28 add `mcp-param-…`, named by each tool."""

MAX_REQUESTED_BYTES: Final = 4096
"""How long a list of requested headers may be to be repeated: some hundred `mcp-param-…`."""

MAX_AGE_SECONDS: Final = 7200
"""How long browsers remember a preflight; Chromium's maximum. The request itself is checked each time."""

_MCP_HEADER: Final = re.compile(rb"mcp-[!#$%&'*+\-.^_`|~0-9a-z]+")
"""RFC 9110 section 5.6.2 token, in lower case."""

_READABLE: Final = (
    (b"access-control-expose-headers", b"Mcp-Session-Id, WWW-Authenticate, Retry-After"),
    (b"vary", b"Origin"),
)


class CrossOriginAccess:
    """One MCP route with what browsers need; to everybody but pages of allowed origins it is the route as it is."""

    def __init__(
        self, application: Callable[[Scope, Receive, Send], Awaitable[None]], policy: OriginPolicy, methods: bytes
    ) -> None:
        """`methods`: what the route answers, comma-separated."""
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

        Browsers send it without the page's key, so it comes before authentication and says the same of every server and
        user. It counts towards no limit: those of addresses are for good keys, which a neighbour's preflights are not
        to use up, and it costs less than a 404, which counts towards none either.
        """
        headers = [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-methods", self._methods),
            (b"access-control-allow-headers", _allowed_headers(scope)),
            (b"access-control-max-age", b"%d" % MAX_AGE_SECONDS),
            (b"vary", b"Origin"),
            *COMMON_HEADERS,
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def readable_headers(origin: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """What an answer needs so that a page of `origin` may read it."""
    return ((b"access-control-allow-origin", origin), *_READABLE)


def _allowed_headers(scope: Scope) -> bytes:
    """The requested headers if MCP clients send all of them; otherwise the fixed ones, which stops the page's request.

    Repeated, because `mcp-param-…` cannot be listed beforehand, and `*` would not cover Authorization.
    """
    requested = b",".join(value for name, value in scope["headers"] if name == b"access-control-request-headers")
    names = [name.strip(b" \t").lower() for name in requested[: MAX_REQUESTED_BYTES + 1].split(b",")]
    is_usual = len(requested) <= MAX_REQUESTED_BYTES and all(
        name in CLIENT_HEADERS or _MCP_HEADER.fullmatch(name) for name in names
    )
    return b", ".join(names if is_usual else CLIENT_HEADERS)
