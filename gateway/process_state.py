"""What a server's module may do to the process while it is imported, and must not keep.

Lives here: putting it back. Not here: importing (`discovery`).
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress


@contextmanager
def restored_process_state() -> Iterator[None]:
    """Undo what modules commonly do to the process when they are imported: `sys.path`, standard output, logging."""
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
    kept = [logging.root, *(found for found in manager.loggerDict.values() if isinstance(found, logging.Logger))]
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
        for found, handlers, filters, level, is_disabled, propagate in states:
            found.handlers[:], found.filters[:] = handlers, filters
            found.disabled, found.propagate = is_disabled, propagate
            if found.level != level:
                found.setLevel(level)
        logging.disable(disabled_level)
        logging.setLoggerClass(logger_class)
        logging.setLogRecordFactory(record_factory)
