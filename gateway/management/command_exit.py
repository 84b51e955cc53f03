"""Ends commands that loaded servers, even if threads of these servers are still running."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

END_SECONDS: Final = 1.0
"""How long threads that servers have started may go on after the command is done."""


@contextmanager
def ending_despite_threads() -> Iterator[None]:
    """End the process soon after the block, which is a whole command.

    Python waits at exit for every thread that is not a daemon, such as one that polls something for ever. Here they get
    `END_SECONDS` to finish. If they do, the process exits in the ordinary way.
    """
    status = 1
    try:
        yield
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    finally:
        if any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()):
            threading.Thread(target=_exit_late, args=(status,), name="exit", daemon=True).start()


def _exit_late(status: int) -> None:
    time.sleep(END_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader has gone
            stream.flush()
    os._exit(status)
