"""Keeps signal handlers, timers and blocked signals. Only the main thread can change handlers."""

import contextlib
import signal
import threading
from collections.abc import Callable
from typing import Any


def keep_handlers() -> Callable[[], bool]:
    """Keep what is called on each signal, and the descriptor that an event loop is woken up by."""
    if threading.current_thread() is not threading.main_thread():
        return _nothing
    handlers = {number: handler for number in signal.valid_signals() if (handler := _handler(number)) is not None}
    descriptor = _wakeup_descriptor()

    def restore() -> bool:
        changed = [number for number, handler in handlers.items() if _handler(number) is not handler]
        for number in changed:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, handlers[number])
        is_changed = _wakeup_descriptor() != descriptor
        if is_changed:
            with contextlib.suppress(OSError, ValueError):  # it was closed
                signal.set_wakeup_fd(descriptor)
        return bool(changed) or is_changed

    return restore


def keep_mask() -> Callable[[], bool]:
    """Keep which signals this thread blocks."""
    if not hasattr(signal, "pthread_sigmask"):
        return _nothing
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])

    def restore() -> bool:
        return signal.pthread_sigmask(signal.SIG_SETMASK, mask) != mask

    return restore


def keep_timers() -> Callable[[], bool]:
    """Stop timers and alarms that were not running. One that ran before is left alone: it has gone on meanwhile."""
    if not hasattr(signal, "setitimer"):
        return _nothing
    timers = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    stopped = [timer for timer in timers if not any(signal.getitimer(timer))]

    def restore() -> bool:
        started = [timer for timer in stopped if any(signal.getitimer(timer))]
        for timer in started:
            signal.setitimer(timer, 0)
        return bool(started)

    return restore


def _handler(number: int) -> Any:
    """What is called on a signal; None where C code has set it."""
    try:
        return signal.getsignal(number)
    except (OSError, ValueError):
        return None


def _wakeup_descriptor() -> int:
    descriptor = signal.set_wakeup_fd(-1)
    with contextlib.suppress(OSError, ValueError):
        signal.set_wakeup_fd(descriptor)
    return descriptor


def _nothing() -> bool:
    return False
