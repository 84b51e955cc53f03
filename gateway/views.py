"""What the host says of itself over HTTP. Read only, asynchronous, and never dependent on the database."""

from django.http import HttpRequest, HttpResponseBase, HttpResponseNotAllowed, JsonResponse

from gateway.apps import GatewayConfig


def _server_names() -> list[str]:
    return GatewayConfig.current().registry.names


async def index(request: HttpRequest) -> HttpResponseBase:
    """Say what this is and what it serves."""
    if request.method not in ("GET", "HEAD"):
        return HttpResponseNotAllowed(["GET", "HEAD"])
    return JsonResponse({"status": "ok", "message": "guMCP server running", "servers": _server_names()})


async def health_check(request: HttpRequest) -> HttpResponseBase:
    """Answer a liveness probe."""
    if request.method not in ("GET", "HEAD"):
        return HttpResponseNotAllowed(["GET", "HEAD"])
    return JsonResponse({"status": "ok", "servers": _server_names()})
