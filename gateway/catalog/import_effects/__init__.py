"""Undoes side effects of importing a server module: what it changes for the whole process is put back.

Each module here keeps the state of one part of the process: `streams`, `loggers`, `signals`, `interpreter`, `system`,
`patches` (attributes of Python's own modules). Environment variables: `environment`. Not here: importing (`loading`),
and how long it may take (`load_limits`).

Only what is done while a module is loaded is put back. What its handlers do later is not.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from gateway.catalog.import_effects import interpreter, loggers, patches, signals, system
from gateway.catalog.import_effects.streams import own_streams

logger = logging.getLogger(__name__)

_Restore = Callable[[], bool]
"""Puts a part of the process back as it was, and returns whether it had been changed."""

_PARTS: Final[dict[str, Callable[[], _Restore]]] = {
    # Put back in this order.
    "patched functions of Python": patches.keep_attributes,
    "replaced modules": patches.keep_modules,
    "import hooks": patches.keep_import_hooks,
    "sys.path": interpreter.keep_path,
    "limits of the interpreter": interpreter.keep_limits,
    "trace functions": interpreter.keep_tracing,
    "the garbage collector": interpreter.keep_garbage_collector,
    "faulthandler": interpreter.keep_faulthandler,
    "warning filters": interpreter.keep_warnings,
    "the random generator": interpreter.keep_random,
    "the default socket timeout": interpreter.keep_socket_timeout,
    "the locale": system.keep_locale,
    "the umask": system.keep_umask,
    "the working directory": system.keep_working_directory,
    "resource limits": system.keep_resource_limits,
    "the scheduling of the process": system.keep_scheduling,
    "loggers": loggers.keep_loggers,
    # Before the handlers: no timer may go off when its signal is not ignored any more.
    "timers": signals.keep_timers,
    "signal handlers": signals.keep_handlers,
    # Last, so that signals which were blocked meanwhile find the handlers that there were.
    "blocked signals": signals.keep_mask,
}

_USUAL: Final = frozenset({"sys.path", "loggers", "warning filters"})
"""Parts that so many modules change that it is not worth a line in the log."""


@contextmanager
def restored_process_state(name: str) -> Iterator[None]:
    """Put back at the end of the block what the server called `name` has changed in the process, and log what it was.

    It does not matter which thread imports. Signals are put back only if the block is in the main thread; no other
    thread can change their handlers. Blocks must not overlap: the second would keep what the first undoes.
    """
    kept = [(part, keep()) for part, keep in _PARTS.items()]
    # Around the rest: putting descriptors back needs functions that may have been patched.
    with own_streams():
        try:
            yield
        finally:
            changed = [part for part, restore in kept if _restored(part, restore)]
            if unusual := [part for part in changed if part not in _USUAL]:
                text = ", ".join(unusual)
                logger.info("Server %s has changed while it was loaded, and this was undone: %s", name, text)


@contextmanager
def restored_functions(name: str) -> Iterator[None]:
    """Put back what the server called `name` has patched at once, so that what it raised can be described."""
    restore = patches.keep_attributes()
    try:
        yield
    finally:
        if restore():
            logger.info("Server %s has patched functions of Python while it was loaded, and this was undone", name)


def _restored(part: str, restore: _Restore) -> bool:
    try:
        return restore()
    except Exception:  # the rest must be put back in any case
        logger.exception("Could not put back %s", part)
        return False
