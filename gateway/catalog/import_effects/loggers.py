"""Keeps the configuration of logging."""

import logging
from collections.abc import Callable


def keep_loggers() -> Callable[[], bool]:
    """Keep every logger that exists; loggers that are made later stay as they are.

    All of them and not only the root's: `logging.config.dictConfig` disables loggers that it is not told of.
    """
    manager = logging.root.manager
    # A copy, because other threads may make loggers meanwhile.
    loggers = list(manager.loggerDict.values())
    kept = [logging.root, *(found for found in loggers if isinstance(found, logging.Logger))]
    states = [
        (found, list(found.handlers), list(found.filters), found.level, found.disabled, found.propagate)
        for found in kept
    ]
    disabled_level = manager.disable

    def restore() -> bool:
        is_changed = False
        # Levels only where they have changed: setting one takes logging's lock, which a stuck module may hold.
        for found, handlers, filters, level, is_disabled, propagate in states:
            now = (found.handlers, found.filters, found.level, found.disabled, found.propagate)
            if now == (handlers, filters, level, is_disabled, propagate):
                continue
            is_changed = True
            found.handlers[:], found.filters[:] = handlers, filters
            found.disabled, found.propagate = is_disabled, propagate
            if found.level != level:
                found.setLevel(level)
        if manager.disable != disabled_level:
            is_changed = True
            logging.disable(disabled_level)
        return is_changed

    return restore
