"""What the host says of itself over HTTP: read only, asynchronous, of what is in memory."""

import asyncio
import sys
from typing import Final

from django.db import DatabaseError, InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.defaults import server_error

from gateway import health
from gateway.apps import GatewayConfig

SESSION_SECONDS: Final = 2.0
"""How long the database may take to tell who an operator is."""

RETRY_SECONDS: Final = 10
"""When to try a page again that the database failed."""


def _server_names() -> list[str]:
    return GatewayConfig.current().registry.names


def _refuse_method() -> HttpResponseBase:
    allowed = "GET, HEAD"
    return JsonResponse({"error": f"This resource answers {allowed}."}, status=405, headers={"Allow": allowed})


# Exempt, or a POST would be told of a missing CSRF token instead of the methods there are.
@csrf_exempt
async def index(request: HttpRequest) -> HttpResponseBase:
    """Say what this is and what it serves."""
    if request.method not in ("GET", "HEAD"):
        return _refuse_method()
    return JsonResponse({"status": "ok", "message": "guMCP server running", "servers": _server_names()})


@csrf_exempt
async def health_check(request: HttpRequest) -> HttpResponseBase:
    """Tell an operator how the host is. Everybody else's questions are answered before Django (`gateway.health`)."""
    if request.method not in ("GET", "HEAD"):
        return _refuse_method()
    host = GatewayConfig.current().host
    assert host is not None
    if not health.wants_report(request.META.get("QUERY_STRING", "").encode("latin-1")):
        content, status = health.liveness(host)
        return JsonResponse(content, status=status)
    if not await _is_operator(request):
        refusal = "For operators: log in to the admin first, or ask from the host's own machine."
        return JsonResponse({"error": refusal}, status=403)
    content, status = health.report(host)
    return JsonResponse(content, status=status, headers={"Cache-Control": "no-store"})


async def _is_operator(request: HttpRequest) -> bool:
    """Whether the caller has a staff session. Reads the database, for so long at most: one that is away says no."""
    try:
        async with asyncio.timeout(SESSION_SECONDS):
            user = await request.auser()
    except (TimeoutError, DatabaseError):
        return False
    return user.is_active and user.is_staff


def page_failed(request: HttpRequest) -> HttpResponseBase:
    """Answer for a page that raised: 503 if the database was why, for that passes and no call needs it, else 500."""
    error = sys.exc_info()[1]  # Django calls its handler of errors while it handles one.
    if not isinstance(error, (OperationalError, InterfaceError)):
        return server_error(request)
    return HttpResponse(
        f"The database cannot be used now ({type(error).__name__}), and this page needs it. MCP calls do not, and go "
        "on. The log says more, and so does /health_check?full=1.",
        status=503,
        content_type="text/plain; charset=utf-8",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )
