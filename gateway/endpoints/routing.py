"""Which ASGI application answers a path: the MCP doors by Channels' routing, everything else Django."""

from typing import Any
from urllib.parse import quote

from channels.routing import URLRouter
from django.urls import re_path

from gateway.endpoints.not_found import NotFound
from gateway.endpoints.session import SessionEndpoint
from gateway.endpoints.sse_messages import SseMessagesEndpoint
from gateway.host.host import Host
from gateway.http.asgi import Receive, Scope, Send
from gateway.http.cors import CrossOriginAccess


def build_mcp_router(host: Host) -> Any:
    """The MCP routes of `host`. They match the path as the client wrote it."""
    session_url = r"^(?P<server_name>[^/]+)/(?P<session_key>[^/]+)"
    session = CrossOriginAccess(SessionEndpoint(host), host.origin_policy, b"GET, POST, DELETE")
    messages = CrossOriginAccess(SseMessagesEndpoint(host), host.origin_policy, b"POST")
    # A page that left the session key out is to read the 404 that says so.
    nothing = CrossOriginAccess(NotFound(), host.origin_policy, b"GET, POST, DELETE")
    routes: list[tuple[str, Any]] = []
    if host.doorkeeper.authenticator.checks_keys:
        # With a bearer key the URL need not say who is calling. Nobody with a key is called "messages".
        routes += [
            (r"^(?P<server_name>[^/]+)/messages/?$", messages),
            (r"^(?P<server_name>[^/]+)/?$", session),
        ]
    routes += [
        (rf"{session_url}/messages/?$", messages),
        (rf"{session_url}/?$", session),
        (r"", nothing),
    ]
    return URLRouter([re_path(pattern, application) for pattern, application in routes])


class HttpRouter:
    """Sends a request to Django if its first path segment is one of Django's, and to the MCP routes otherwise."""

    def __init__(self, django: Any, mcp: Any, django_segments: frozenset[str]) -> None:
        self._django = django
        self._mcp = mcp
        self._django_segments = django_segments
        self._not_found = NotFound()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        # Not every ASGI server sends raw_path; without it the best there is is the decoded path.
        path: str = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1")
        # uvicorn puts the root path before the path, Daphne beside it.
        root_path = scope.get("root_path", "").rstrip("/")
        inner = path.removeprefix(root_path) if root_path else path
        outer = path if inner != path else root_path + path
        if inner == "/" or inner.lstrip("/").partition("/")[0] in self._django_segments:
            await self._django(scope, receive, send)
        elif inner.startswith("//"):
            # Repeated in the endpoint event it would be another host's URL.
            await self._not_found(scope, receive, send)
        else:
            # A percent-encoded slash in a key is no separator: match what was written, not what it decodes to.
            inner_scope = {**scope, "raw_path": outer.encode("latin-1"), "path": inner, "root_path": ""}
            await self._mcp(inner_scope, receive, send)
