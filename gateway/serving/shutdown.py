"""SIGTERM, SIGINT and SIGHUP, noticed and enforced by a thread.

A handler on the event loop is of no use when an application blocks the loop, and a handler in Python does not run while
the main thread is inside a long call into C. The kernel's side of a signal reaches this thread through
`signal.set_wakeup_fd` in both cases.
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

FLUSH_SECONDS: Final = 0.1
"""What is spent on log lines in memory before a forced end; a blocked main thread may hold their lock."""

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_HANGUP: Final = getattr(signal, "SIGHUP", None)
"""The terminal was closed. It may come twice, from the kernel and from a shell that passes it on, or right behind
SIGTERM (systemd's SendSIGHUP): so it begins an end and hastens none."""

_STANDARD_ERROR: Final = 2


class ShutdownWatch(threading.Thread):
    """Ask for an orderly end at the first signal, end the process at the second or when the time is up.

    Nothing on this thread may wait for anybody: it is the one that ends a process in which all else waits.
    """

    def __init__(self, on_first_signal: Callable[[], None], limit_seconds: float) -> None:
        super().__init__(name="shutdown-watch", daemon=True)
        self._on_first_signal = on_first_signal
        self._limit_seconds = limit_seconds
        self._ends_at: float | None = None
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)

    def install(self) -> None:
        """Take over the signals; only the main thread may."""
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _leave_to_the_thread)
        # Ignored from the start: nohup.
        if _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN:
            signal.signal(_HANGUP, _leave_to_the_thread)
        self.start()

    def note(self, number: int) -> None:
        """Tell of a signal that somebody else handles. Safe in a signal handler: it takes no lock."""
        self._writer.send(bytes([number]))

    def end_within(self, seconds: float) -> None:
        """Let what is left of the process, its `atexit` functions and threads, take so long at most."""
        self._ends_at = min(self._ends_at or float("inf"), time.monotonic() + seconds)
        self._writer.send(b"\0")

    def run(self) -> None:
        signals_seen = 0
        while True:
            left = None if self._ends_at is None else self._ends_at - time.monotonic()
            if left is not None and left <= 0:
                _end_process(0, b"Shutdown did not finish in time; the process ends with what still runs.\n")
            self._reader.settimeout(left)
            try:
                number = self._reader.recv(1)[0]
            except TimeoutError:
                continue
            if number not in _SIGNALS and (number != _HANGUP or signals_seen):
                continue
            signals_seen += 1
            if signals_seen > 1:
                _end_process(128 + number)
            self._ends_at = time.monotonic() + self._limit_seconds
            # A loop that is closed needs no telling.
            with contextlib.suppress(RuntimeError):
                self._on_first_signal()


def drop_unwritable_streams() -> None:
    """Let Python end with its status although nobody takes the rest of the log, as after a terminal was closed.

    It would end with 120 over what is left in the buffers.
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
    """Stand in for the default action: without a handler in Python, nothing is written to the wakeup descriptor."""


def _end_process(status: int, last_words: bytes = b"") -> None:
    """End the process, whoever holds its log up: standard error may be a full pipe that nobody reads."""
    flushing = threading.Thread(target=_flush, args=(last_words,), daemon=True)
    try:
        flushing.start()
        flushing.join(FLUSH_SECONDS)
    except RuntimeError:
        # Since Python 3.12 an interpreter that is shutting down starts no threads; it has flushed by then.
        with contextlib.suppress(OSError):
            if select.select([], [_STANDARD_ERROR], [], 0)[1]:
                os.write(_STANDARD_ERROR, last_words)
    finally:
        os._exit(status)


def _flush(last_words: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(_STANDARD_ERROR, last_words)
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
