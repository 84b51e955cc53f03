"""What a connection may cost (`ServingLimits`), and what the server tells the project (`ServingHooks`).

Plain values, without Django and without Twisted (of Daphne, only its access log): `gateway.host` fills them from
settings, `gateway.serving.server` applies them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from gateway.serving.access_log import AccessLog

ServingEvent = Literal[
    "slow_reader",
    "header_timeout",
    "body_timeout",
    "too_many_connections",
    "too_many_bodies",
    "bad_request",
    "body_too_large",
    "wasteful_body",
]
"""Why the server itself refused or ended a connection: a metric label."""

ActionLogger = Callable[[str, str, dict[str, Any]], None]
"""Daphne's word for an access log: it is called with a protocol ("http"), an action ("complete") and details."""

Hook = Callable[[], Awaitable[None] | None]
"""Called on the server's event loop. If it returns an awaitable, that is awaited."""


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """The limits of connections. Bytes are counted on the wire. Deadlines are checked once a second."""

    head_bytes: int = 16 * 1024
    """Request line and headers together; 431 beyond it."""

    head_fields: int = 200
    """Header lines of one request; 431 beyond it."""

    header_timeout_seconds: float = 15.0
    """From connecting, or from the first byte of a later request, to the end of its headers."""

    body_bytes: int = 4 * 1024 * 1024
    """The largest request body; 413 beyond it. Bodies are held in memory."""

    unfinished_bodies_bytes: int = 256 * 1024 * 1024
    """All bodies together that are being read. Beyond it one of them is answered 503; `bodies` decides which."""

    body_timeout_seconds: float = 120.0
    """From the end of the headers to the end of the body, at any speed."""

    body_grace_seconds: float = 10.0
    """How long a body may take before it must come at `body_bytes_per_second`."""

    body_bytes_per_second: int = 1024
    """The lowest speed of a body: it has `body_grace_seconds`, and one second for every so many bytes."""

    keep_alive_seconds: float = 75.0
    """How long a connection may be idle between two requests. Longer than the 60 s of common load balancers: the load
    balancer must close first, or it sends a request into a closed socket."""

    buffered_bytes: int = 1024 * 1024
    """Response bytes that may wait for a client, see `slow_reader_seconds`."""

    slow_reader_seconds: float = 30.0
    """Within this time a client must take everything that waits for it, or `buffered_bytes` of it, whichever is less.
    If it does not, its connection is closed as a slow reader's."""

    peer_lost_seconds: int = 60
    """A peer that has not answered a packet for this long is gone. TCP keepalive and TCP_USER_TIMEOUT find out."""

    connections: int = 20_000
    """Open sockets in all; 503 beyond it. Fewer if the process may not open as many files."""

    connections_per_address: int = 10_000
    """Open sockets of one IPv4 address or one IPv6 /64 network; 503 beyond it. Not applied with `--proxy-headers`,
    where every socket is the proxy's."""

    backlog: int = 2048
    """Connections that the kernel queues while the loop is busy. An endpoint may have its own number."""

    shutdown_grace_seconds: float = 20.0
    """From the first SIGTERM to the cancellation of applications that are still running."""

    has_successor: bool = False
    """Whether another process serves already when this one drains. Then an idle connection may bring one more request
    within `DRAIN_ALLOWANCE_SECONDS`: a client may be sending it just now, and would find the connection closed."""

    peer_port: int | None = None
    """The port where other machines of one host connect. Their idle connections have `PEER_ALLOWANCE_SECONDS`."""


def _ignore_event(event: ServingEvent) -> None:
    """Do nothing."""


def _keep_path(path: str) -> str:
    return path


def _do_nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class ServingHooks:
    """What the server calls in the project. If a hook raises, that is logged and has no other effect."""

    redact: Callable[[str], str] = _keep_path
    """Returns a request target as it may be logged: without the session key."""

    make_access_log: Callable[[Any], ActionLogger] = AccessLog
    """Makes what writes the access log to a text stream."""

    on_event: Callable[[ServingEvent], None] = _ignore_event
    """Counts a refused or ended connection."""

    on_start: Hook = _do_nothing
    """Called once, after the ports are open. (Daphne has no lifespan events.)"""

    on_drain: Hook = _do_nothing
    """Called once, after SIGTERM, when the ports are closed: end the streams here, and report it in health."""

    on_stop: Hook = _do_nothing
    """Called once, after the last application has ended or was cancelled: save what must not be lost."""
