"""SIGTERM, SIGINT and SIGHUP: a thread notices them, and the process ends in time.

A handler on the event loop is useless while an application blocks the loop, and a handler in Python does not run while
the main thread is inside a long call into C. In both cases this thread is told of the signal through
`signal.set_wakeup_fd`. If no thread can run because a call into C holds the GIL, `freezes` and `guard` end the process.
docs/starting-and-stopping.md has the whole sequence.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

from gateway.serving.freezes import FreezeWatch
from gateway.serving.guard import Guard
from gateway.serving.standard_streams import log_descriptor
from gateway.serving.timetable import FLUSH_SECONDS, FROZEN_MARGIN_SECONDS

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_HANGUP: Final = getattr(signal, "SIGHUP", None)
"""The terminal was closed. It may come twice, from the kernel and from a shell that passes it on, or right behind
SIGTERM (systemd's SendSIGHUP). So it begins a shutdown and never hastens one."""


class ShutdownWatch(threading.Thread):
    """Asks for an orderly shutdown at the first signal; ends the process at the second, or when the time is up.

    Nothing in this thread may wait for anything else: it ends a process in which everything else waits.
    """

    def __init__(self, on_first_signal: Callable[[], None], limit_seconds: float, *, has_guard: bool = True) -> None:
        """`has_guard` is false where another process ends this one if it must."""
        super().__init__(name="shutdown-watch", daemon=True)
        self.freezes = FreezeWatch()
        self._on_first_signal = on_first_signal
        self._limit_seconds = limit_seconds
        self._has_guard = has_guard
        self._guard = Guard()
        self._ends_at: float | None = None
        self._is_finished = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_wakeup = -1

    def install(self) -> None:
        """Take over the signals. Only the main thread may call this."""
        for number in _SIGNALS:
            signal.signal(number, _leave_to_the_thread)
        # It may be ignored from the start: nohup.
        if _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN:
            signal.signal(_HANGUP, _leave_to_the_thread)
        self.install_beside()

    def install_beside(self) -> None:
        """Notice signals that somebody else handles. Only the main thread may call this."""
        self._previous_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if self._has_guard:
            self._guard.start(self._reader, self._limit_seconds + FROZEN_MARGIN_SECONDS)
        self.start()

    def resume(self) -> None:
        """Notice signals again: a loop of uvloop's takes them when it begins to run. Call it in that loop."""
        previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if previous != self._writer.fileno():
            self._previous_wakeup = previous

    def finish(self) -> None:
        """Give the signals back to whoever handled them. Only the main thread may call this."""
        self._is_finished = True
        signal.set_wakeup_fd(self._previous_wakeup)

    def end_within(self, seconds: float) -> None:
        """End the process after `seconds` if `atexit` functions or threads still run."""
        self._limit_rest(seconds)
        self._writer.send(b"\0")

    def run(self) -> None:
        """Wait for signals and for the end of the time."""
        signals_seen = 0
        while True:
            left = None if self._ends_at is None else self._ends_at - time.monotonic()
            if left is not None and left <= 0:
                _end_process(0, b"The shutdown did not finish in time; the process ends with what still runs.\n")
            self._reader.settimeout(left)
            try:
                # Read only after everything is prepared: an unread number tells the guard that the process is frozen.
                number = self._reader.recv(1, socket.MSG_PEEK)[0]
            except TimeoutError:
                continue
            is_stop = not self._is_finished and (number in _SIGNALS or (number == _HANGUP and not signals_seen))
            signals_seen += is_stop
            if is_stop and signals_seen > 1:
                _end_process(128 + number)
            if is_stop:
                self._limit_rest(self._limit_seconds)
                self._guard.notice()
            self._reader.recv(1)
            self._pass_on(number)
            if is_stop:
                # The loop may be closed by now.
                with contextlib.suppress(RuntimeError):
                    self._on_first_signal()

    def _limit_rest(self, seconds: float) -> None:
        self._ends_at = min(self._ends_at or float("inf"), time.monotonic() + seconds)
        self.freezes.end_process_in(self._ends_at - time.monotonic() + FROZEN_MARGIN_SECONDS)

    def _pass_on(self, number: int) -> None:
        """Tell an event loop that had the signals before, such as uvloop's."""
        if number and self._previous_wakeup >= 0 and not self._is_finished:
            with contextlib.suppress(OSError):
                os.write(self._previous_wakeup, bytes([number]))


def drop_unwritable_streams() -> None:
    """Let Python end with its own status although nobody reads the rest of the log, as after a terminal was closed.

    Otherwise it would end with 120, because of what is left in the buffers.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def _leave_to_the_thread(number: int, frame: FrameType | None) -> None:
    """Replace the default action: without a handler in Python, nothing is written to the wakeup descriptor."""


def _end_process(status: int, last_words: bytes = b"") -> None:
    """End the process, even if its log blocks: standard error may be a full pipe that nobody reads."""
    flushing = threading.Thread(target=_flush, args=(last_words,), daemon=True)
    try:
        flushing.start()
        flushing.join(FLUSH_SECONDS)
    except RuntimeError:
        # Since Python 3.12 an interpreter that is shutting down starts no threads. It has flushed by then.
        with contextlib.suppress(OSError, ValueError):
            if select.select([], [log_descriptor()], [], 0)[1]:
                os.write(log_descriptor(), last_words)
    finally:
        os._exit(status)


def _flush(last_words: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(log_descriptor(), last_words)
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
