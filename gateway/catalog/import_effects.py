"""Undoes side effects of importing a server module.

Lives here: what is put back after a load. Not here: importing (`loading`), and how long it may take (`load_limits`).
"""

import asyncio
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.catalog.standard_streams import stdout_on_stderr


@contextmanager
def restored_process_state() -> Iterator[None]:
    """Undo what modules commonly do to the process when they are imported: `sys.path`, standard output, logging.

    It does not matter which thread imports. Blocks must not overlap: the second would keep what the first undoes.
    """
    path = list(sys.path)
    try:
        with stdout_on_stderr(), _restored_logging():
            yield
    finally:
        sys.path[:] = path


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
