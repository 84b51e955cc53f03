"""Notices when the whole process stands still, and writes down what it is doing.

One call that holds the GIL inside C, such as a regular expression that backtracks without end, stops every thread: no
server is answered, no signal handler runs, and no watchdog in Python wakes up. `faulthandler` has a thread in C that
needs no GIL. The event loop postpones its alarm every second; while the loop stands still, it goes off and writes the
stacks of all threads to standard error.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
import threading
import time
from typing import Final

from gateway.serving.standard_streams import log_descriptor

logger = logging.getLogger(__name__)

FROZEN_SECONDS: Final = 5.0
"""How long the event loop may stand still before the stacks are written."""

BEAT_SECONDS: Final = 1.0


class FreezeWatch:
    """The alarm of a process. There is one in a process, since `faulthandler` has only one.

    Threads: `start` is called on the event loop, `end_process_in` from any thread.
    """

    def __init__(self) -> None:
        self._last_beat = 0.0
        self._ends_at: float | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Watch the running event loop. Also write stacks when the process crashes in C."""
        if _is_usable():
            faulthandler.enable(log_descriptor(), all_threads=True)
            self._last_beat = time.monotonic()
            self._beat()

    def end_process_in(self, seconds: float) -> None:
        """End the process after `seconds`, with all stacks in the log and status 1. This cannot be undone."""
        self._ends_at = time.monotonic() + seconds
        self._set_alarm()

    def _beat(self) -> None:
        # Also while the process ends: what undoes the effects of an import cancels the alarm.
        self._set_alarm()
        now = time.monotonic()
        late = now - self._last_beat - BEAT_SECONDS
        self._last_beat = now
        if late > FROZEN_SECONDS:
            logger.error("This process answered nothing for %.1f s. The stacks above say what it was doing.", late)
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)

    def _set_alarm(self) -> None:
        with self._lock:
            ends_at = self._ends_at
            seconds = FROZEN_SECONDS if ends_at is None else max(0.001, ends_at - time.monotonic())
            if _is_usable():
                faulthandler.dump_traceback_later(seconds, exit=ends_at is not None, file=log_descriptor())


def _is_usable() -> bool:
    return sys.__stderr__ is not None
