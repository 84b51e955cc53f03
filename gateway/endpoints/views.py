"""The host's own pages for people, as asynchronous Django views that only read what is in memory.

Only the operator's session is read from the database, with a time limit. Not here: the report for probes and operators,
and which of their requests are answered without Django (`health`).
"""

import asyncio
import sys
from typing import TYPE_CHECKING, Final

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.db import DatabaseError, InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.template.loader import render_to_string
from django.views.decorators.csrf import csrf_exempt
from django.views.defaults import server_error

from gateway.apps import GatewayConfig
from gateway.conf import conf
from gateway.endpoints import health
from gateway.endpoints.disclosure import visible_servers

if TYPE_CHECKING:  # Django's pages are checked without the SDK, which this imports
    from gateway.host.host import Host

SESSION_SECONDS: Final = 2.0
"""How long the database may take to find the operator's session."""

RETRY_SECONDS: Final = 10
"""When to try a page again that the database failed."""


# Exempt, or a POST would be told of a missing CSRF token instead of the methods there are.
@csrf_exempt
async def index(request: HttpRequest) -> HttpResponseBase:
    """Say what this is, whether it runs, and what it serves to those who may see it."""
    if request.method not in ("GET", "HEAD"):
        allowed = "GET, HEAD"
        return JsonResponse({"error": f"This resource answers {allowed}."}, status=405, headers={"Allow": allowed})
    config = GatewayConfig.current()
    if config.host is None:  # Django without the ASGI application, as in its test client
        content, status = {"status": "ok"}, 200
    else:
        content, status = health.liveness(config.host, await _visible_servers(config.host, request))
    message = "guMCP server running" if status == 200 else f"guMCP server {content['status']}"
    headers = {"Vary": "Accept"}
    if _asks_for_html(request):
        # Rendered without the request: its user and messages would read the database.
        page = render_to_string("console/home.html", {"message": message, "servers": content.get("servers")})
        return HttpResponse(page, status=status, headers=headers)
    return JsonResponse({**content, "message": message}, status=status, headers=headers)


async def health_check(request: HttpRequest) -> HttpResponseBase:
    """Answer a request that may be an operator's, from elsewhere. `health` answers all others without Django."""
    host = GatewayConfig.current().host
    assert host is not None
    if not health.wants_report(request.META["QUERY_STRING"].encode("latin-1")):
        content, status = health.liveness(host, await _visible_servers(host, request))
    elif await _is_operator(request):
        content, status = health.report(host)
    else:
        refusal = "For operators: log in to the admin first, or ask from the host's own machine."
        return JsonResponse({"error": refusal}, status=403)
    return JsonResponse(content, status=status, headers={"Cache-Control": "no-store"})


async def _visible_servers(host: "Host", request: HttpRequest) -> list[str] | None:
    """The names of the servers that the caller may see; None for a stranger."""
    assert isinstance(request, ASGIRequest)
    scope = dict(request.scope)
    names = await visible_servers(host, scope)
    if names is None and settings.SESSION_COOKIE_NAME in request.COOKIES and await _is_operator(request):
        names = await visible_servers(host, scope, is_staff=True)
    return names


def _asks_for_html(request: HttpRequest) -> bool:
    """Whether the client names HTML in its Accept header, as browsers do. `*/*` does not."""
    return any((it.main_type, it.sub_type) == ("text", "html") for it in request.accepted_types)


async def _is_operator(request: HttpRequest) -> bool:
    """Whether the caller has a staff session. False if the database does not answer within `SESSION_SECONDS`."""
    try:
        async with asyncio.timeout(SESSION_SECONDS):
            user = await request.auser()
    except (TimeoutError, DatabaseError):
        return False
    return user.is_active and user.is_staff


def page_failed(request: HttpRequest) -> HttpResponseBase:
    """Answer for a page that raised: 503 if the database was the cause, since that passes; otherwise 500."""
    error = sys.exc_info()[1]  # Django calls its handler of errors while it handles one.
    if not isinstance(error, (OperationalError, InterfaceError)):
        return server_error(request)
    calls = (
        "So do MCP calls where it cannot be read: their keys are checked in it."
        if conf.auth_mode == "keys"
        else "MCP calls do not, and go on."
    )
    return HttpResponse(
        f"The database cannot be used now ({type(error).__name__}), and this page needs it. {calls} "
        "The log says more, and so does /health_check?full=1.",
        status=503,
        content_type="text/plain; charset=utf-8",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )
