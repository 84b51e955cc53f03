"""The last log lines of a server as JSON, which its page asks for again and again. They are in one process's memory."""

import os
from datetime import UTC, datetime
from typing import Final

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse

from gateway.apps import GatewayConfig
from gateway.printable import LINES, printable

PERMISSION: Final = "records.view_server_log"


def may_see_log(request: HttpRequest) -> bool:
    """Whether this operator may see log lines."""
    return bool(request.user.has_perm(PERMISSION))


def log_lines(request: HttpRequest, server_name: str | None) -> HttpResponse:
    """Answer with the lines after number `after` if `process` names this process; otherwise with all that are kept.

    With several workers, the next answer may come from another one. `process` tells which it is.
    """
    if not may_see_log(request):
        raise PermissionDenied
    if server_name is None:
        raise Http404
    process = str(os.getpid())
    text = request.GET.get("after", "")
    is_same = request.GET.get("process") == process and text.isascii() and text.isdigit() and len(text) < 20
    after = int(text) if is_same else 0
    host = GatewayConfig.current().host
    lines = [] if host is None else host.server_log.lines(server_name, after)
    shown = [
        {
            "at": datetime.fromtimestamp(line.at, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            "level": line.level,
            "logger": line.logger,
            "text": printable(line.text, LINES),
        }
        for line in lines
    ]
    content = {"process": process, "last": lines[-1].number if lines else after, "lines": shown}
    return JsonResponse(content, headers={"Cache-Control": "no-store"})
