"""Our Daphne: what the server does that Daphne's own does not.

`limits`, `head`, `bodies` and `descriptors` are plain Python; `exchange`, `channel`, `shutdown` and `server` are the
server. This module imports none of the latter: `daphne.server` installs a Twisted reactor, which another ASGI server
has no use for.
"""

from __future__ import annotations

import functools
import sys

from gateway.serving.limits import Hook, ServingEvent, ServingHooks, ServingLimits

__all__ = ["Hook", "ServingEvent", "ServingHooks", "ServingLimits", "install_if_daphne"]


def install_if_daphne(limits: ServingLimits, hooks: ServingHooks) -> bool:
    """Make the `daphne` command use our server, if this process is that command; tell whether it is.

    Daphne reads `CommandLineInterface.server_class` after it has imported the application (daphne/cli.py:26), so the
    application's module is the place to call this. Under another ASGI server it does nothing.
    """
    cli = sys.modules.get("daphne.cli")
    if cli is None:
        return False
    from gateway.serving.server import Server

    # staticmethod: from Python 3.14 on a bare partial would be bound as a method.
    cli.CommandLineInterface.server_class = staticmethod(functools.partial(Server, limits=limits, hooks=hooks))
    return True
