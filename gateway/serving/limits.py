"""What a connection may cost, and what the server tells the project about.

Plain values, without Django and without Twisted. `gateway.host.serving` fills them from the settings;
`gateway.serving.server` obeys them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

ServingEvent = Literal[
    "slow_reader",
    "header_timeout",
    "body_timeout",
    "too_many_connections",
    "too_many_bodies",
    "bad_request",
    "body_too_large",
]
"""Why the server itself refused or ended a connection; a metric label."""

Hook = Callable[[], Awaitable[None] | None]
"""Called on the server's event loop; what it returns is awaited if it can be."""


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """Bytes are counted on the wire, seconds may be fractions. Deadlines are checked once a second."""

    head_bytes: int = 16 * 1024
    """Request line and headers together; more is answered 431."""

    head_fields: int = 200
    """Header lines of one request; more is answered 431."""

    header_timeout_seconds: float = 15.0
    """From the connect, or from the first byte of a later request, to the end of its headers."""

    body_bytes: int = 4 * 1024 * 1024
    """The largest request body, also the most that is held in memory for one; more is answered 413."""

    unfinished_bodies_bytes: int = 256 * 1024 * 1024
    """The most that all bodies hold which are being read; beyond it one is answered 503, see `bodies` for which."""

    body_timeout_seconds: float = 120.0
    """From the end of the headers to the end of the body, however fast it comes."""

    body_grace_seconds: float = 10.0
    """How long a body may take before `body_bytes_per_second` is asked of it."""

    body_bytes_per_second: int = 1024
    """The slowest body: it has `body_grace_seconds` and one second more for every so many bytes."""

    keep_alive_seconds: float = 75.0
    """How long a connection may wait between two requests. Longer than the 60 s that load balancers are used to wait:
    they must be the ones who close, or a request of theirs meets a closed socket."""

    buffered_bytes: int = 1024 * 1024
    """Response bytes that a connection may hold while its client does not read them, see `slow_reader_seconds`."""

    slow_reader_seconds: float = 30.0
    """The time in which a client must take everything that is held for it, or `buffered_bytes` of it, whichever is
    less. One that does not is closed as slow."""

    peer_lost_seconds: int = 60
    """A peer that answers no packet for this long is gone; TCP keepalive and TCP_USER_TIMEOUT see to it."""

    connections: int = 20_000
    """Open sockets in all; one more is answered 503. Fewer if the process may not open as many files."""

    connections_per_address: int = 10_000
    """Open sockets of one IPv4 address or one IPv6 /64 network; one more is answered 503. Not applied with
    `--proxy-headers`: every socket is the proxy's then."""

    backlog: int = 2048
    """Connections that the kernel queues while the loop is busy; an endpoint that names its own keeps it."""

    shutdown_grace_seconds: float = 20.0
    """From the first SIGTERM to the moment when the applications still running are cancelled."""


def _ignore_event(event: ServingEvent) -> None:
    """Count nothing."""


def _keep_path(path: str) -> str:
    return path


def _do_nothing() -> None:
    """Wait for nothing."""


@dataclass(frozen=True, slots=True)
class ServingHooks:
    """The project's side of the server. A hook that raises is logged and changes nothing else."""

    redact: Callable[[str], str] = _keep_path
    """A request target as it may be logged: without the session key in it."""

    on_event: Callable[[ServingEvent], None] = _ignore_event
    """Counts."""

    on_start: Hook = _do_nothing
    """Once, after the ports are open: Daphne has no lifespan events."""

    on_drain: Hook = _do_nothing
    """Once, when SIGTERM came and the ports are closed: end the streams here, and let health say so."""

    on_stop: Hook = _do_nothing
    """Once, after the last application has ended or was cancelled: flush what must not be lost."""
