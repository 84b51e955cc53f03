"""File descriptors: makes sure that there are enough for the connections, and reports when there are none left."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import replace
from typing import Any, Final

from gateway.serving.limits import ServingLimits

logger = logging.getLogger(__name__)

SPARE: Final = 512
"""What a process opens besides its clients' connections: files, the database, connections of its servers, and surplus
connections while they are refused."""

SILENT_SECONDS: Final = 60.0
"""How long after a failure was logged further ones are not."""


def fit_connections(limits: ServingLimits) -> ServingLimits:
    """Raise the soft limit of open files as far as the connections need and the hard limit allows.

    Returns limits for which there are descriptors, and logs a warning if they allow fewer connections. A connection
    beyond a limit is answered with a refusal, which needs a descriptor too.
    """
    if sys.platform == "win32":
        return limits
    import resource

    needed = limits.connections + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if wanted > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            # macOS has another limit, which getrlimit does not report.
            logger.debug("The limit of open files could not be raised", exc_info=True)
        else:
            soft = wanted
    if soft >= needed:
        return limits
    fitting = min(limits.connections, max(soft - SPARE, soft // 2))
    logger.warning(
        "This process may open %d files, so it serves %d connections at once and not %d. Run it with `ulimit -n %d` "
        "or lower GUMCP_MAX_CONNECTIONS.",
        soft,
        fitting,
        limits.connections,
        needed,
    )
    # One address must not take all that is left. It gets half of it, or its share if that is more than half.
    share = limits.connections_per_address * fitting // max(1, limits.connections)
    per_address = max(share, min(limits.connections_per_address, fitting // 2))
    return replace(limits, connections=fitting, connections_per_address=per_address)


class AcceptFailures:
    """Observes Twisted's log, the only place where Twisted reports connections that could not be accepted."""

    def __init__(self) -> None:
        self._silent_until = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        """Log a failure, unless one was logged a short while ago."""
        # twisted.internet.tcp._accept
        if "acceptError" in event:
            reason = event["acceptError"]
        elif str(event.get("log_format", "")).startswith("EMFILE encountered"):
            reason = "EMFILE"
        else:
            return
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + SILENT_SECONDS
            logger.error(
                "Connections cannot be accepted (%s). If this process has no file descriptors left, raise `ulimit -n`, "
                "or lower GUMCP_MAX_CONNECTIONS.",
                reason,
            )
