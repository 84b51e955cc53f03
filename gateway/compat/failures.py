"""How a failing handler is logged: where it failed and with what kind of exception, but not with which text.

The text of an exception may contain what a user typed, or a key in a URL. Tracebacks are logged at DEBUG only, where
the host's log takes the texts out (`access.redaction`).
"""

from __future__ import annotations

import logging
import sysconfig
from pathlib import Path
from traceback import FrameSummary, extract_tb
from typing import Final

_PACKAGE: Final = str(Path(__file__).parent.parent)

_LIBRARIES: Final = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def log_failure(logger: logging.Logger, what: str, name: str, error: BaseException) -> None:
    """Log that a handler failed: `what` it is ("Tool"), its name, the kind of exception, and the author's line."""
    error = _origin(error)
    frame = _author_frame(error)
    where = "" if frame is None else f" at {_short(frame.filename)}, line {frame.lineno}"
    logger.info("%s %r failed with %s%s", what, name, type(error).__name__, where)
    logger.debug("%s %r failed", what, name, exc_info=error)


def _author_frame(error: BaseException) -> FrameSummary | None:
    """Return the innermost frame of the server's own code, or of any code if there is none."""
    frames = extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_library(frame.filename)]
    return next(iter(reversed(own or frames)), None)


def _origin(error: BaseException) -> BaseException:
    """Return the exception that the server's own code saw, if `error` was only made from it by a library."""
    while error.__cause__ is not None and all(_is_library(frame.filename) for frame in extract_tb(error.__traceback__)):
        error = error.__cause__
    return error


def _is_library(path: str) -> bool:
    return path.startswith((_PACKAGE, *_LIBRARIES, "<")) or "site-packages" in path


def _short(path: str) -> str:
    """Return the file with its folder: most servers call their file `main.py`."""
    return "/".join(Path(path).parts[-2:])
