"""Keeps what the operating system knows of the process: locale, umask, working directory, limits, scheduling."""

import contextlib
import locale
import os
from collections.abc import Callable
from importlib import import_module


def keep_locale() -> Callable[[], bool]:
    """Keep the locale of the process."""
    kept = locale.setlocale(locale.LC_ALL)

    def restore() -> bool:
        if locale.setlocale(locale.LC_ALL) == kept:
            return False
        locale.setlocale(locale.LC_ALL, kept)
        return True

    return restore


def keep_umask() -> Callable[[], bool]:
    """Keep the permissions that new files do not get."""
    # It can only be read by setting it: for a moment to the value with which other threads do no harm.
    kept = os.umask(0o077)
    os.umask(kept)

    def restore() -> bool:
        return os.umask(kept) != kept

    return restore


def keep_working_directory() -> Callable[[], bool]:
    """Keep the working directory."""
    try:
        kept = os.getcwd()
    except OSError:  # it was removed
        return lambda: False

    def restore() -> bool:
        with contextlib.suppress(OSError):
            if os.getcwd() == kept:
                return False
        os.chdir(kept)
        return True

    return restore


def keep_resource_limits() -> Callable[[], bool]:
    """Keep the limits of open files, memory, CPU time and the like, as far as they can be raised again."""
    try:
        resource = import_module("resource")
    except ImportError:  # not on this platform
        return lambda: False
    numbers = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    kept = {number: resource.getrlimit(number) for number in numbers}

    def restore() -> bool:
        changed = [number for number, limits in kept.items() if resource.getrlimit(number) != limits]
        for number in changed:
            try:
                resource.setrlimit(number, kept[number])
            except (OSError, ValueError):  # only root can raise a hard limit: as far as that allows
                hard = resource.getrlimit(number)[1]
                resource.setrlimit(number, (hard, hard))
        return bool(changed)

    return restore


def keep_scheduling() -> Callable[[], bool]:
    """Keep the priority of the process and the CPUs that it may use."""
    if not hasattr(os, "sched_getaffinity"):
        return lambda: False
    priority, cpus = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)

    def restore() -> bool:
        is_changed = False
        if os.getpriority(os.PRIO_PROCESS, 0) != priority:
            is_changed = True
            with contextlib.suppress(OSError):  # only root can raise it
                os.setpriority(os.PRIO_PROCESS, 0, priority)
        if os.sched_getaffinity(0) != cpus:
            is_changed = True
            os.sched_setaffinity(0, cpus)
        return is_changed

    return restore
