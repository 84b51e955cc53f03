"""The time that loading a server may take: reporting a slow load, and ending one that takes too long."""

import ctypes
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic  # not looked up later: a module may patch it while it is loaded
from types import FrameType
from typing import Final

logger = logging.getLogger(__name__)

SLOW_LOAD_SECONDS: Final = 5.0
"""After how long a load is first reported as slow. Later reports follow after twice as long each."""


class LoadTimeout(BaseException):
    """A module took too long to load.

    Not an `Exception`, so that a module that catches errors and tries again does not catch it.
    """


@contextmanager
def limited_load(folder: Path, limit_seconds: float) -> Iterator[None]:
    """Report the load of `folder` inside the block while it is slow, and end it after `limit_seconds` (0: never).

    Only a load in the main thread is ended here: a signal interrupts whatever it waits for, as Ctrl-C does. A load in
    another thread is reported; whoever started that thread ends it with `give_up_load`.

    Raises:
        LoadTimeout
    """
    thread = threading.get_ident()
    is_over = is_closed = is_due = False
    closing, end = threading.Lock(), threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        # A module may have set an alarm of its own.
        if is_due and not is_over:
            raise LoadTimeout

    def watch(can_interrupt: bool) -> None:
        nonlocal is_due
        started = monotonic()
        report_at, interrupt_at = SLOW_LOAD_SECONDS, limit_seconds if can_interrupt else float("inf")
        while not end.wait(max(0.0, started + min(report_at, interrupt_at) - monotonic())):
            seconds = monotonic() - started
            if seconds >= report_at:
                report_at *= 2
                place = place_of_thread(thread, folder)
                where = f", in {place}" if place else ""
                logger.warning("Server %s is still being loaded after %.0f s%s", folder.name, seconds, where)
            if seconds >= interrupt_at:
                was_due, is_due = is_due, True
                with closing:
                    if not is_closed:
                        signal.pthread_kill(thread, signal.SIGALRM)
                        if was_due:  # the module catches everything, or handles the signal itself
                            _raise_in(thread)
                interrupt_at += max(limit_seconds, SLOW_LOAD_SECONDS)

    previous = _claim_alarm(interrupt) if limit_seconds else None
    threading.Thread(target=watch, args=(previous is not None,), name=f"watch-{folder.name}", daemon=True).start()
    try:
        try:
            yield
        finally:
            is_over = True
    finally:
        # Twice, because the interruption may have come just before the first time. From here on it does nothing.
        is_over = True
        with closing:
            is_closed = True
        end.set()
        if previous is not None and signal.getsignal(signal.SIGALRM) is interrupt:
            signal.signal(signal.SIGALRM, previous)


def give_up_load(thread: threading.Thread) -> None:
    """Raise `LoadTimeout` in a live thread as soon as it runs Python code again, so that it does no more harm.

    A thread that waits goes on waiting.
    """
    _raise_in(thread.ident or 0)


def _raise_in(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(LoadTimeout))


_Handler = Callable[[int, FrameType | None], object] | int


def _claim_alarm(handler: _Handler) -> _Handler | None:
    """Have `handler` called on SIGALRM and return the previous handler; None where that is not possible."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_kill"):
        return None
    if signal.getsignal(signal.SIGALRM) is None:  # set by C code, so it could not be put back
        return None
    return signal.signal(signal.SIGALRM, handler)


def place_of_thread(thread: int | None, folder: Path) -> str:
    """Return which line of the folder's code a thread executes, such as `store.py, line 3`; nothing if none."""
    frame = sys._current_frames().get(thread or 0)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(folder):
            return f"{path.relative_to(folder)}, line {frame.f_lineno}"
        frame = frame.f_back
    return ""
