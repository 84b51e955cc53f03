"""The answers to `/health_check`: a load balancer learns whether the host is alive, an operator what is wrong with it.

They are given without Django and without the database. Not here: operators who ask from another machine, whose staff
session is looked up (`views.health_check`), and `/` (`views.index`).
"""

import json
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from django.conf import settings

from gateway.endpoints.disclosure import is_from_this_machine, visible_servers
from gateway.host.database_state import is_database_late
from gateway.http.asgi import Receive, Scope, Send
from gateway.http.requests import header
from gateway.http.responses import respond

if TYPE_CHECKING:  # Django's pages are checked without the SDK, which this imports
    from gateway.host.host import Host

PATHS: Final = frozenset({"/health_check", "/health_check/"})


class HealthEndpoint:
    """Answers `/health_check` in front of Django.

    Django takes six middlewares and as many threads for a request: with 50 busy sessions a probe waited for 250 ms at
    the median, and a restart by an impatient orchestrator ends every session there is.
    """

    def __init__(self, host: "Host", django: Any) -> None:
        self._host = host
        self._django = django

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on to Django."""
        if scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) not in PATHS:
            await self._django(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            content, status = {"error": "This resource answers GET, HEAD."}, 405
            headers = [(b"allow", b"GET, HEAD")]
        elif not wants_report(scope["query_string"]):
            servers = await visible_servers(self._host, scope)
            if servers is None and _has_session(scope):  # perhaps an operator's, which takes the database to know
                await self._django(scope, receive, send)
                return
            (content, status), headers = liveness(self._host, servers), []
        elif is_from_this_machine(scope):
            (content, status), headers = report(self._host), []
        else:
            await self._django(scope, receive, send)
            return
        await respond(send, status, json.dumps(content).encode(), b"application/json", headers)


def liveness(host: "Host", servers: list[str] | None) -> tuple[dict[str, Any], int]:
    """The answer to a probe and its status. `servers`: the names that the caller may see.

    200, or 503: once the process has been told to stop, and as long as the database has not been migrated.
    """
    names = {} if servers is None else {"servers": servers}
    if host.drain.is_begun:
        return {"status": "draining", **names}, 503
    if host.recorder.lacks_migrations:
        return {"status": "not migrated", **names}, 503
    return {"status": "ok", **names}, 200


def report(host: "Host") -> tuple[dict[str, Any], int]:
    """What an operator wants to know, and the status of the probe: a host that is only degraded is alive.

    Everything comes from memory: the database is judged by how its writer fares.
    """
    now = time.monotonic()
    recorder = host.recorder
    age = None if recorder.last_flush is None else now - recorder.last_flush
    is_late = is_database_late(recorder)
    blocked = host.lane_watch.blocked_servers
    liveness_content, status = liveness(host, host.registry.names)
    is_degraded = is_late or bool(blocked) or bool(host.registry.failures)
    return {
        **liveness_content,
        "status": liveness_content["status"] if status != 200 or not is_degraded else "degraded",
        "failed_servers": {failure.name: failure.reason for failure in host.registry.failures},
        "lanes": {
            lane.name: {"lag_seconds": round(lane.lag_seconds, 3), "is_blocked": lane.name in blocked}
            for lane in host.lanes
        },
        "database": {
            "status": "not migrated" if recorder.lacks_migrations else "late" if is_late else "ok",
            "seconds_since_last_write": None if age is None else round(age, 1),
            "error": recorder.last_error,
        },
        "drain": {
            "is_draining": host.drain.is_begun,
            "seconds_left": max(0.0, round(host.drain.seconds_left, 1)) if host.drain.is_begun else None,
        },
        "sessions": len(host.sessions),
        "streams": len(host.streams),
        "instances": len(host.instances),
        "stuck_calls": sum(calls.stuck for calls in host.instances.calls),
    }, status


def _has_session(scope: Scope) -> bool:
    """Whether the request has a cookie of a session in the admin, valid or not."""
    return f"{settings.SESSION_COOKIE_NAME}=" in (header(scope, b"cookie") or "")


def wants_report(query_string: bytes) -> bool:
    """Whether `full=1` is asked for."""
    return parse_qs(query_string.decode("latin-1")).get("full") == ["1"]
