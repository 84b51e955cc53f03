"""Keeps settings of the Python interpreter."""

import faulthandler
import gc
import random
import socket
import sys
import tracemalloc
import warnings
from collections.abc import Callable


def keep_path() -> Callable[[], bool]:
    """Keep `sys.path` and `sys.argv`."""
    kept = (sys.path, list(sys.path)), (sys.argv, list(sys.argv))

    def restore() -> bool:
        is_changed = [sys.path, sys.argv] != [entries for _, entries in kept]
        # The lists themselves too: others hold them.
        (sys.path, path), (sys.argv, arguments) = kept
        sys.path[:], sys.argv[:] = path, arguments
        return is_changed

    return restore


def keep_limits() -> Callable[[], bool]:
    """Keep the recursion limit, the switch interval and the longest number that is read from text."""
    kept = (sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits())

    def restore() -> bool:
        if (sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits()) == kept:
            return False
        sys.setrecursionlimit(kept[0])
        sys.setswitchinterval(kept[1])
        sys.set_int_max_str_digits(kept[2])
        return True

    return restore


def keep_tracing() -> Callable[[], bool]:
    """Keep the trace and profile functions of this thread, and whether memory is traced."""
    trace, profile, traces_memory = sys.gettrace(), sys.getprofile(), tracemalloc.is_tracing()

    def restore() -> bool:
        is_changed = False
        if sys.gettrace() is not trace:
            is_changed = True
            sys.settrace(trace)
        if sys.getprofile() is not profile:
            is_changed = True
            sys.setprofile(profile)
        if tracemalloc.is_tracing() and not traces_memory:
            is_changed = True
            tracemalloc.stop()
        return is_changed

    return restore


def keep_garbage_collector() -> Callable[[], bool]:
    """Keep the settings of the garbage collector."""
    is_enabled, threshold, debug, callbacks = gc.isenabled(), gc.get_threshold(), gc.get_debug(), list(gc.callbacks)

    def restore() -> bool:
        is_changed = False
        # Never switched off here: another thread may have had it off for a moment when the state was kept.
        if is_enabled and not gc.isenabled():
            is_changed = True
            gc.enable()
        if (gc.get_threshold(), gc.get_debug(), gc.callbacks) != (threshold, debug, callbacks):
            is_changed = True
            gc.set_threshold(*threshold)
            gc.set_debug(debug)
            gc.callbacks[:] = callbacks
        return is_changed

    return restore


def keep_faulthandler() -> Callable[[], bool]:
    """Keep whether faults are reported, and cancel a report that is due later: it may end the process.

    Who wants such a report from the host asks for it again and again, as a watchdog does.
    """
    is_enabled = faulthandler.is_enabled()

    def restore() -> bool:
        faulthandler.cancel_dump_traceback_later()
        if faulthandler.is_enabled() == is_enabled:
            return False
        if is_enabled:
            faulthandler.enable()
        else:
            faulthandler.disable()
        return True

    return restore


def keep_warnings() -> Callable[[], bool]:
    """Keep which warnings are shown, and how."""
    keeper = warnings.catch_warnings()
    keeper.__enter__()
    filters, show = list(warnings.filters), warnings.showwarning

    def restore() -> bool:
        is_changed = (list(warnings.filters), warnings.showwarning) != (filters, show)
        keeper.__exit__(None, None, None)
        return is_changed

    return restore


def keep_random() -> Callable[[], bool]:
    """Seed the random generator anew, in case it was seeded: its numbers must not be the same in every process."""
    kept = random.getstate()

    def restore() -> bool:
        if random.getstate() != kept:
            random.seed()
        # Whether somebody has seeded it or only used it cannot be told.
        return False

    return restore


def keep_socket_timeout() -> Callable[[], bool]:
    """Keep how long sockets wait that have no time limit of their own."""
    kept = socket.getdefaulttimeout()

    def restore() -> bool:
        if socket.getdefaulttimeout() == kept:
            return False
        socket.setdefaulttimeout(kept)
        return True

    return restore
