"""Our Daphne, and how a process that serves is started, watched and ended.

* Plain Python: `limits`, `head` (requests), `chunks`, `bodies` and `turns` (their bodies), `descriptors`.
* The server, on Twisted: `exchange` (a request and its response), `connection`, `connections`, `server`.
* The process, under every ASGI server: `shutdown` (signals), `timetable`, `freezes` and `guard` (a process that stands
  still), `standard_streams`.
* `small_server`: a server in a thread, for the metrics port.

Imports `http` and the ground. Imported by `host`, `endpoints`, `fleet` and `management`. This module does not import
`server`: `daphne.server` installs a Twisted reactor, for which another ASGI server has no use.
"""

from __future__ import annotations

import functools
import sys

from gateway.serving.limits import Hook, ServingEvent, ServingHooks, ServingLimits

__all__ = ["Hook", "ServingEvent", "ServingHooks", "ServingLimits", "install_if_daphne"]


def install_if_daphne(limits: ServingLimits, hooks: ServingHooks) -> bool:
    """Make the `daphne` command use our server. Returns whether this process is that command.

    Daphne reads `CommandLineInterface.server_class` after it has imported the application (daphne/cli.py:26), so the
    application's module is the place to call this. Under another ASGI server it does nothing.
    """
    cli = sys.modules.get("daphne.cli")
    if cli is None:
        return False
    from gateway.serving.server import HttpServer

    # staticmethod: from Python 3.14 on a bare partial would be bound as a method.
    cli.CommandLineInterface.server_class = staticmethod(functools.partial(HttpServer, limits=limits, hooks=hooks))
    return True
