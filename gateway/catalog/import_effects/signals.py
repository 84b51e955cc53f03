"""Keeps signal handlers, timers and blocked signals. Only the main thread can change handlers."""

import contextlib
import signal
import threading
from collections.abc import Callable
from typing import Any


def keep_handlers() -> Callable[[], bool]:
    """Keep what is called on each signal, and the descriptor that an event loop is woken up by.

    Meanwhile signals are ignored that would end the process because a module has set a timer or a limit of CPU time.
    """
    if threading.current_thread() is not threading.main_thread():
        return _nothing
    handlers: dict[int, Any] = {
        number: handler for number in signal.valid_signals() if (handler := _handler(number)) is not None
    }
    descriptor = _wakeup_descriptor()
    ignored = [number for number in _fatal_signals() if handlers.get(number) is signal.SIG_DFL]
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    expected = {**handlers, **dict.fromkeys(ignored, signal.SIG_IGN)}

    def restore() -> bool:
        changed = [number for number, handler in expected.items() if _handler(number) is not handler]
        is_changed = bool(changed) or _wakeup_descriptor() != descriptor
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        # One that was blocked and is due is dropped now, instead of ending the process later.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
        for number in (*changed, *ignored):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, handlers[number])
        with contextlib.suppress(OSError, ValueError):  # it was closed
            signal.set_wakeup_fd(descriptor)
        return is_changed

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


def _fatal_signals() -> list[int]:
    """Signals of timers that do not run yet, and of the limit of CPU time."""
    timers = (
        (signal.SIGALRM, signal.ITIMER_REAL),
        (signal.SIGVTALRM, signal.ITIMER_VIRTUAL),
        (signal.SIGPROF, signal.ITIMER_PROF),
    )
    return [signal.SIGXCPU, *(number for number, timer in timers if not any(signal.getitimer(timer)))]


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
