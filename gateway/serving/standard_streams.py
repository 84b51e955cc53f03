"""Gives Python's standard output and standard error descriptors of their own, which nothing else closes.

A server's module may close descriptors 1 and 2, as daemons do. The next connections would get these numbers, and the
log would be written into what their clients read.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any, Final

LOWEST_DESCRIPTOR: Final = 200
"""The lowest number of the new descriptors: above those that code closes on suspicion (`os.closerange(3, 100)`)."""

_STANDARD: Final = (1, 2)


def keep_standard_streams() -> None:
    """Let `sys.stdout` and `sys.stderr` write to duplicates of their descriptors. Calling it again changes nothing.

    The stream objects stay the same: log handlers and the access log of the ASGI server may have them already.
    """
    if sys.platform == "win32":
        return
    import fcntl

    for stream in (sys.stdout, sys.stderr):
        raw = _raw(stream)
        # Another object, such as the one that pytest puts there, is not for us to change.
        if raw is None or raw.fileno() not in _STANDARD:
            continue
        with suppress(OSError, ValueError):  # closed, or the process may open very few files
            stream.flush()
            descriptor = fcntl.fcntl(raw.fileno(), fcntl.F_DUPFD_CLOEXEC, LOWEST_DESCRIPTOR)
            # A FileIO may be initialized again, with another descriptor (CPython, Modules/_io/fileio.c).
            raw.__init__(descriptor, "wb", closefd=False)  # type: ignore[misc]


def log_descriptor() -> int:
    """The descriptor of standard error as the log uses it. For what is written without Python's streams."""
    raw = _raw(sys.__stderr__)
    return 2 if raw is None else raw.fileno()


def _raw(stream: Any) -> io.FileIO | None:
    """The file below a stream; None if there is none or it is closed."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # with `python -u` there is no buffer
    if not isinstance(raw, io.FileIO) or raw.closed:
        return None
    with suppress(OSError):
        os.fstat(raw.fileno())
        return raw
    return None
