"""File descriptors: enough for the connections, or else fewer connections, and a word when there are none left."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import replace
from typing import Any, Final

from gateway.serving.limits import ServingLimits

logger = logging.getLogger(__name__)

SPARE: Final = 512
"""What a process opens besides its clients' connections: files, the database, what servers connect to, and the surplus
connections that are being told so."""

SILENT_SECONDS: Final = 60.0
"""From one line on descriptors that ran out to the next."""


def fit_connections(limits: ServingLimits) -> ServingLimits:
    """Raise the soft limit of open files as far as the connections need and the hard limit allows.

    Returns limits that there is room for, with a warning if these are fewer connections: one beyond a limit can be told
    so, one that finds no descriptor cannot.
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
            # macOS has another limit, which getrlimit does not tell.
            logger.debug("The limit of open files could not be raised", exc_info=True)
        else:
            soft = wanted
    if soft >= needed:
        return limits
    fitting = min(limits.connections, max(soft - SPARE, soft // 2))
    logger.warning(
        "The process may open %d files: %d connections are served at once, not %d. For all of them it needs "
        "`ulimit -n %d`; or lower GUMCP_MAX_CONNECTIONS.",
        soft,
        fitting,
        limits.connections,
        needed,
    )
    # One address is not to take all that is left: half of it, or more where it may have more than half of all.
    share = limits.connections_per_address * fitting // max(1, limits.connections)
    per_address = max(share, min(limits.connections_per_address, fitting // 2))
    return replace(limits, connections=fitting, connections_per_address=per_address)


class AcceptFailures:
    """An observer of Twisted's log, which alone tells of connections that could not be accepted."""

    def __init__(self) -> None:
        self._silent_until = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        """Pass on the first failure in a while."""
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
                "Connections cannot be accepted (%s). If the process has opened all the files that it may, raise "
                "`ulimit -n` or lower GUMCP_MAX_CONNECTIONS.",
                reason,
            )
