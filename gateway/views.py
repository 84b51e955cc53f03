"""What the host says of itself over HTTP. Read only, asynchronous, and never dependent on the database."""

from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from gateway.apps import GatewayConfig


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
    """Answer a liveness probe: 200 while healthy, 503 once the process has been told to stop."""
    if request.method not in ("GET", "HEAD"):
        return _refuse_method()
    host = GatewayConfig.current().host
    if host is not None and host.is_draining:
        return JsonResponse({"status": "draining", "servers": _server_names()}, status=503)
    return JsonResponse({"status": "ok", "servers": _server_names()})
