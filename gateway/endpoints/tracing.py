"""What spans say of requests to the MCP endpoints. The spans themselves: `gateway.tracing`."""

from mcp_types.version import KNOWN_PROTOCOL_VERSIONS

from gateway.endpoints.base import McpEndpoint
from gateway.endpoints.sse_messages import SseMessagesEndpoint, query_session_id
from gateway.endpoints.streamable_http import SESSION_ID
from gateway.host.host import Host
from gateway.http.asgi import AsgiApplication, Message, Scope
from gateway.http.requests import header
from gateway.instances.call_log import STATELESS
from gateway.tracing.facts import RequestFacts
from gateway.transports.stateless import VERSION, is_stateless


def traced(host: Host, endpoint: McpEndpoint, route: str) -> AsgiApplication:
    """Return `endpoint` with a span for each request, or as it is if the host has no tracing."""
    if host.tracing is None:
        return endpoint
    takes_sse_messages = isinstance(endpoint, SseMessagesEndpoint)

    def find_facts(scope: Scope, start: Message | None) -> RequestFacts:
        name = scope["url_route"]["kwargs"]["server_name"]
        session_id = query_session_id(scope) if takes_sse_messages else _session_id(scope, start)
        # A client can name any version, in the header and in `initialize`.
        versions = (header(scope, VERSION), host.sessions.protocol_version_of(session_id))
        return RequestFacts(
            name if host.registry.serves(name) else "",
            "sse" if takes_sse_messages else _transport(scope, session_id),
            next((version for version in versions if version in KNOWN_PROTOCOL_VERSIONS), ""),
        )

    return host.tracing.endpoint(endpoint, route, find_facts)


def _session_id(scope: Scope, start: Message | None) -> str:
    """The session that a request belongs to, or has opened; empty if there is none."""
    opened = next((value for name, value in start["headers"] if name == SESSION_ID), b"") if start is not None else b""
    return header(scope, SESSION_ID) or opened.decode("ascii")


def _transport(scope: Scope, session_id: str) -> str:
    if scope["method"] == "GET" and not session_id:
        return "sse"
    return STATELESS if scope["method"] == "POST" and is_stateless(header(scope, VERSION)) else "streamable-http"
