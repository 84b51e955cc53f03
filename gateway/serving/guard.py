"""Starts the guard, a small process that ends this one if it is frozen when it is told to stop.

While a call into C holds the GIL, no Python code of this process runs when a signal arrives. Python's signal handler in
C does not need the GIL: it writes the number of the signal to a socket. The guard, a process of its own, sees that
nobody reads the number.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

PROGRAM: Final = Path(__file__).with_name("guard_process.py")

_PASSED_ON: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Variables that the interpreter may need to start. The guard gets no others: the environment may hold secrets."""


class Guard:
    """The guard of this process. `notice` may be called from any thread."""

    def __init__(self) -> None:
        self._notices: int | None = None

    def start(self, signals: socket.socket, seconds: float) -> None:
        """Have this process ended if the number of a signal to stop stays in `signals` for so long.

        It ends by SIGABRT, with all stacks where `faulthandler` is enabled, and by SIGKILL if that does not help.
        """
        if sys.platform == "win32" or not sys.executable:
            return
        if os.getpid() == 1:
            _let_abort_end_init()
        arguments = [sys.executable, "-I", "-S", str(PROGRAM), str(os.getpid()), str(seconds)]
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        read, write = os.pipe()
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.posix_spawn(
                sys.executable,
                arguments,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, signals.fileno(), 0),
                    # It must not hold the log open when this process is gone.
                    (os.POSIX_SPAWN_DUP2, null, 1),
                    (os.POSIX_SPAWN_DUP2, null, 2),
                    (os.POSIX_SPAWN_DUP2, read, 3),
                ],
            )
        except OSError as error:
            os.close(write)
            logger.warning("There is no guard process: if this host is frozen, no signal stops it (%s)", error.strerror)
        else:
            self._notices = write
        finally:
            os.close(null)
            os.close(read)

    def notice(self) -> None:
        """Tell the guard that a signal to stop was noticed. If a later one stays unnoticed, it counts as the second."""
        if self._notices is not None:
            with contextlib.suppress(OSError):  # the guard is gone
                os.write(self._notices, b"!")


def _let_abort_end_init() -> None:
    """Let SIGABRT end the first process of a container, which the kernel protects from signals without a handler.

    A handler in Python would need the GIL. libc's `_exit` can be the handler: its argument is the signal's number.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.signal(signal.SIGABRT, ctypes.cast(libc._exit, ctypes.c_void_p))
    except (AttributeError, OSError):
        logger.debug("SIGABRT cannot be handled by libc", exc_info=True)
