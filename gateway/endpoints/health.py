"""What the host says of its own health: to a load balancer whether it lives, to an operator what is wrong with it.

Lives here: the answers to `/health_check`, given without Django and without the database. Not here: who an operator is
when he asks from elsewhere (`views.health_check`: a staff session), and `/` (`views.index`).
"""

import json
import re
import time
from typing import Any, Final
from urllib.parse import parse_qs

from gateway.host.host import Host
from gateway.http.addresses import is_loopback
from gateway.http.asgi import Receive, Scope, Send
from gateway.http.requests import client_address
from gateway.http.responses import respond
from gateway.records.models import FLUSH_SECONDS

PATHS: Final = frozenset({"/health_check", "/health_check/"})

DATABASE_LATE_SECONDS: Final = 3 * FLUSH_SECONDS + 5
"""How old the last write may be: a writer waits 5 s for SQLite's lock before it is told that there is none."""

FORWARDING_HEADERS: Final = frozenset({b"forwarded", b"via", b"x-real-ip"})
FORWARDING_PREFIX: Final = b"x-forwarded-"
"""What a proxy adds: a request that has one of them comes from somewhere else, whatever its socket says."""

LOCAL_NAMES: Final = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})

_PORT: Final = re.compile(rb":\d+$")


class HealthEndpoint:
    """Answers `/health_check` in front of Django.

    Django takes six middlewares and as many threads for a request: with 50 busy sessions a probe waited for 250 ms at
    the median, and a restart by an impatient orchestrator ends every session there is.
    """

    def __init__(self, host: Host, django: Any) -> None:
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
            (content, status), headers = liveness(self._host), []
        elif is_from_this_machine(scope):
            (content, status), headers = report(self._host), []
        else:
            await self._django(scope, receive, send)
            return
        await respond(send, status, json.dumps(content).encode(), b"application/json", headers)


def liveness(host: Host) -> tuple[dict[str, Any], int]:
    """The answer to a probe and its status.

    200, or 503: once the process has been told to stop, and as long as the database has not been migrated.
    """
    if host.drain.is_begun:
        return {"status": "draining", "servers": host.registry.names}, 503
    if host.recorder.lacks_migrations:
        return {"status": "not migrated", "servers": host.registry.names}, 503
    return {"status": "ok", "servers": host.registry.names}, 200


def report(host: Host) -> tuple[dict[str, Any], int]:
    """What an operator wants to know, and the status of the probe: a host that is only degraded is alive.

    Everything comes from memory: the database is judged by how its writer fares.
    """
    now = time.monotonic()
    recorder = host.recorder
    age = None if recorder.last_flush is None else now - recorder.last_flush
    is_database_late = age is None or age > DATABASE_LATE_SECONDS or bool(recorder.last_error)
    blocked = host.lane_watch.blocked_servers
    liveness_content, status = liveness(host)
    is_degraded = is_database_late or bool(blocked) or bool(host.registry.failures)
    return {
        **liveness_content,
        "status": liveness_content["status"] if status != 200 or not is_degraded else "degraded",
        "failed_servers": {failure.name: failure.reason for failure in host.registry.failures},
        "lanes": {
            lane.name: {"lag_seconds": round(lane.lag_seconds, 3), "is_blocked": lane.name in blocked}
            for lane in host.lanes
        },
        "database": {
            "status": "not migrated" if recorder.lacks_migrations else "late" if is_database_late else "ok",
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


def wants_report(query_string: bytes) -> bool:
    """Whether `full=1` is asked for."""
    return parse_qs(query_string.decode("latin-1")).get("full") == ["1"]


def is_from_this_machine(scope: Scope) -> bool:
    """Whether the caller is on this machine and not a proxy that forwards somebody else's request.

    Another name in `Host` means a proxy that keeps the client's, or DNS rebinding.
    """
    for name, value in scope["headers"]:
        if name in FORWARDING_HEADERS or name.startswith(FORWARDING_PREFIX):
            return False
        if name == b"host" and _PORT.sub(b"", value) not in LOCAL_NAMES:
            return False
    return is_loopback(client_address(scope))
