"""Which ASGI application answers a path: Django's pages, or an MCP endpoint."""

from typing import Any, Final

from gateway.catalog.names import DJANGO_SEGMENTS
from gateway.conf import conf
from gateway.endpoints.not_found import NoOAuth, NotFound
from gateway.endpoints.session import SessionEndpoint
from gateway.endpoints.sse_messages import SseMessagesEndpoint
from gateway.endpoints.tracing import traced
from gateway.host.host import Host
from gateway.http.asgi import AsgiApplication, Receive, Scope, Send
from gateway.http.cors import CrossOriginAccess
from gateway.http.refusals import refuse
from gateway.http.requests import KNOWN_METHODS, in_origin_form, raw_path

SESSION_METHODS: Final = b"GET, POST, DELETE"

SESSION_ROUTE: Final = "/{server_name}/{session_key}"
MESSAGES_ROUTE: Final = f"{SESSION_ROUTE}/messages/"

OAUTH_PATHS: Final = frozenset({"/register", "/authorize", "/token"})
"""Where clients look for OAuth if a host has no metadata. Spec: 2025-03-26 basic/authorization#2-3-3."""

WELL_KNOWN: Final = "/.well-known/"
"""Clients look for OAuth metadata below it at the root, and with it in front of and behind the path of the server."""


class McpRouter:
    """The MCP routes. They match the path as the client wrote it."""

    def __init__(self, host: Host) -> None:
        self._session = CrossOriginAccess(
            traced(host, SessionEndpoint(host), SESSION_ROUTE), host.origin_policy, SESSION_METHODS
        )
        self._messages = CrossOriginAccess(
            traced(host, SseMessagesEndpoint(host), MESSAGES_ROUTE), host.origin_policy, b"POST"
        )
        # A web page that left out the session key must be able to read the 404 that says so.
        self._nothing = CrossOriginAccess(NotFound(), host.origin_policy, SESSION_METHODS)
        # With a key in the Authorization header the URL need not say who is calling. No user is called "messages".
        self._needs_session_key = not host.doorkeeper.authenticator.checks_keys

    def match(self, path: str) -> tuple[AsgiApplication, dict[str, str]]:
        """Return what answers `path`, and what is named in it: `server_name`, and perhaps `session_key`."""
        segments = path.removeprefix("/").split("/")
        if len(segments) > 1 and not segments[-1]:
            del segments[-1]
        match segments:
            case _ if not all(segments):
                pass
            case [name, "messages"] if not self._needs_session_key:
                return self._messages, {"server_name": name}
            case [name] if not self._needs_session_key:
                return self._session, {"server_name": name}
            case [name, session_key]:
                return self._session, {"server_name": name, "session_key": session_key}
            case [name, session_key, "messages"]:
                return self._messages, {"server_name": name, "session_key": session_key}
        return self._nothing, {}


class HttpRouter:
    """Sends a request to Django if its first path segment belongs to Django, and to the MCP routes otherwise."""

    def __init__(self, host: Host, django: Any) -> None:
        self._registry = host.registry
        self._public_path = conf.public_path
        self._django = django
        self._mcp = McpRouter(host)
        self._no_oauth = CrossOriginAccess(NoOAuth(), host.origin_policy, SESSION_METHODS)
        self._not_found = NotFound()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        path = raw_path(scope)
        if not path.startswith("/"):
            scope = in_origin_form(scope)
            path = raw_path(scope)
        # uvicorn puts the root path before the path, Daphne beside it. A proxy that serves the host under a path may
        # pass that path on or take it off.
        root_path = scope.get("root_path", "").rstrip("/") or self._public_path
        inner = _below(path, root_path)
        outer = path if inner != path else root_path + path
        if inner == "/" or inner.lstrip("/").partition("/")[0] in DJANGO_SEGMENTS:
            # django-prometheus (2.5) makes time series of every method it sees.
            if scope["method"] in KNOWN_METHODS:
                # Django takes the root path off again.
                django_path = root_path + _below(scope["path"], root_path)
                await self._django({**scope, "path": django_path, "root_path": root_path}, receive, send)
            else:
                await refuse(send, 501, "method_not_allowed", "This host does not implement the request's method.")
        elif WELL_KNOWN in inner or (inner in OAUTH_PATHS and inner[1:] not in self._registry.names):
            await self._no_oauth(scope, receive, send)
        elif inner.startswith("//"):
            # In the endpoint event this path would be a URL of another host.
            await self._not_found(scope, receive, send)
        else:
            # A percent-encoded slash in a key does not separate segments: match the path as it was written.
            application, captured = self._mcp.match(inner)
            inner_scope = {
                **scope,
                "raw_path": outer.encode("latin-1"),
                "path": inner,
                "root_path": "",
                # The key that Channels' URLRouter sets.
                "url_route": {"args": (), "kwargs": captured},
            }
            await application(inner_scope, receive, send)


def _below(path: str, root_path: str) -> str:
    """`path` without `root_path` in front of it, if that is there."""
    if root_path and f"{path}/".startswith(f"{root_path}/"):
        return path[len(root_path) :] or "/"
    return path
