"""What a server's module may do to the process while it is imported, and must not keep.

Lives here: putting it back, and what happens when it holds the process up, at its beginning or at its end. Not here:
importing (`discovery`).
"""

import asyncio
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Final

logger = logging.getLogger(__name__)

SLOW_LOAD_SECONDS: Final = 5.0
"""After how long a load is reported as slow: first after this time, then after twice that, and so on."""

END_SECONDS: Final = 1.0
"""How long a command that is done waits for threads which servers have started."""


class LoadTimeout(BaseException):
    """A module took too long to load. Not an `Exception`: a module that tries again on errors would go on."""


@contextmanager
def restored_process_state() -> Iterator[None]:
    """Undo what modules commonly do to the process when they are imported: `sys.path`, standard output, logging.

    Whichever thread does it. One block at a time: of two that overlap, the later would keep what the earlier undoes.
    """
    path = list(sys.path)
    try:
        with stdout_on_stderr(), _restored_logging():
            yield
    finally:
        sys.path[:] = path


@contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """Send what is printed to standard error: it would get into the protocol of `run_stdio` and `list_servers --json`.

    The descriptor too, for what C code and child processes write.
    """
    with redirect_stdout(sys.stderr):
        try:
            kept = os.dup(1)
        except OSError:  # closed, as in some daemons
            yield
            return
        try:
            with suppress(OSError):  # standard error is closed
                os.dup2(2, 1)
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


@contextmanager
def _restored_logging() -> Iterator[None]:
    """Put back every logger that exists already; those that are made inside the block stay as they are.

    All of them and not only the root's: `logging.config.dictConfig` disables loggers that it is not told of.
    """
    manager = logging.root.manager
    # A copy, which other threads do not change.
    loggers = list(manager.loggerDict.values())
    kept = [logging.root, *(found for found in loggers if isinstance(found, logging.Logger))]
    states = [
        (found, list(found.handlers), list(found.filters), found.level, found.disabled, found.propagate)
        for found in kept
    ]
    disabled_level, logger_class, record_factory = (
        manager.disable,
        logging.getLoggerClass(),
        logging.getLogRecordFactory(),
    )
    try:
        yield
    finally:
        # Levels only where they have changed: setting one takes logging's lock, which a stuck module may hold.
        for found, handlers, filters, level, is_disabled, propagate in states:
            found.handlers[:], found.filters[:] = handlers, filters
            found.disabled, found.propagate = is_disabled, propagate
            if found.level != level:
                found.setLevel(level)
        if manager.disable != disabled_level:
            logging.disable(disabled_level)
        logging.setLoggerClass(logger_class)
        logging.setLogRecordFactory(record_factory)


class _LoadingLoop(asyncio.SelectorEventLoop):
    """The event loop of a thread that loads a module. It lasts as long as the module keeps it."""

    def __del__(self) -> None:
        if not self.is_running():
            self.close()


@contextmanager
def current_event_loop() -> Iterator[None]:
    """Let `asyncio.get_event_loop()` find a loop in every thread, as it does in the main thread."""
    if threading.current_thread() is threading.main_thread():
        yield
        return
    asyncio.set_event_loop(_LoadingLoop())
    try:
        yield
    finally:
        asyncio.set_event_loop(None)


@contextmanager
def limited_load(folder: Path, limit_seconds: float) -> Iterator[None]:
    """Report the load of `folder` inside the block while it is slow, and end it after `limit_seconds` (0: never).

    It is ended in the main thread only, by a signal, as Ctrl-C would: what waits there is interrupted. A load in
    another thread is reported and goes on; who has started that thread stops waiting for it (`give_up_load`).

    Raises:
        LoadTimeout
    """
    thread = threading.get_ident()
    is_over = is_closed = False
    closing, end = threading.Lock(), threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not is_over:
            raise LoadTimeout(f"main.py was not loaded after {limit_seconds:g} seconds.")

    def watch(can_interrupt: bool) -> None:
        started = time.monotonic()
        report_at, interrupt_at = SLOW_LOAD_SECONDS, limit_seconds if can_interrupt else float("inf")
        while not end.wait(max(0.0, started + min(report_at, interrupt_at) - time.monotonic())):
            seconds = time.monotonic() - started
            if seconds >= report_at:
                report_at *= 2
                place = _place(folder, thread)
                logger.warning("Server %s is still being loaded after %.0f s%s", folder.name, seconds, place)
            if seconds >= interrupt_at:
                # Again later, for a module that catches everything.
                interrupt_at += max(limit_seconds, SLOW_LOAD_SECONDS)
                with closing:
                    if not is_closed:
                        signal.pthread_kill(thread, signal.SIGALRM)

    previous = _claim_alarm(interrupt) if limit_seconds else None
    threading.Thread(target=watch, args=(previous is not None,), name=f"watch-{folder.name}", daemon=True).start()
    try:
        try:
            yield
        finally:
            is_over = True
    finally:
        # Twice: the interruption may have come just before the first. From here on it does nothing.
        is_over = True
        with closing:
            is_closed = True
        end.set()
        if previous is not None and signal.getsignal(signal.SIGALRM) is interrupt:
            signal.signal(signal.SIGALRM, previous)


def give_up_load(thread: threading.Thread) -> None:
    """Raise `LoadTimeout` in a thread that is alive, as soon as it runs Python code again. What waits goes on waiting.

    So a load that nobody waits for any more ends before it changes the process once more.
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(LoadTimeout))


_Handler = Callable[[int, FrameType | None], object] | int


def _claim_alarm(handler: _Handler) -> _Handler | None:
    """Have `handler` called on SIGALRM and return what was before; None where that cannot be done, or not put back."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_kill"):
        return None
    if signal.getsignal(signal.SIGALRM) is None:  # set by C code
        return None
    return signal.signal(signal.SIGALRM, handler)


def _place(folder: Path, thread: int) -> str:
    """Where in the folder's code a thread is, as the end of a sentence."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(folder):
            return f", in line {frame.f_lineno} of {path.relative_to(folder)}"
        frame = frame.f_back
    return ""


@contextmanager
def ending_despite_threads() -> Iterator[None]:
    """End the process soon after the block, a whole command, whatever threads servers have left behind.

    Python waits for threads that are no daemons, as those of version 1 modules that poll something, for ever. They have
    a moment, in which the process ends in the ordinary way if it can.
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
            threading.Thread(target=_leave, args=(status,), name="leave", daemon=True).start()


def _leave(status: int) -> None:
    time.sleep(END_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(status)
