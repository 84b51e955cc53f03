"""Gives a module that is loaded standard streams of its own, which it may replace, wrap and close."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


@contextmanager
def own_streams() -> Iterator[None]:
    """Put back `sys.stdin`, `stdout` and `stderr` and their descriptors at the end of the block.

    Inside the block what is printed goes to standard error, because standard output may be a protocol or a result, and
    standard input is empty. C code and child processes use the descriptors.
    """
    streams = (sys.stdin, sys.stdout, sys.stderr)
    kept = [(descriptor, _duplicate(descriptor)) for descriptor in (0, 1, 2)]
    nothing = os.open(os.devnull, os.O_RDONLY)
    if nothing:
        os.dup2(nothing, 0)
        os.close(nothing)
    with suppress(OSError):  # standard error is closed
        os.dup2(2, 1)
    sys.stdin, sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO()), _output(streams[2]), _output(streams[2])
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        for descriptor, duplicate in kept:
            if duplicate is not None:
                os.dup2(duplicate, descriptor)
                os.close(duplicate)
            else:
                with suppress(OSError):
                    os.close(descriptor)


def _duplicate(descriptor: int) -> int | None:
    try:
        return os.dup(descriptor)
    except OSError:  # closed, as in some daemons
        return None


def _output(target: TextIO) -> TextIO:
    return io.TextIOWrapper(_Forwarding(target), "utf-8", "backslashreplace", line_buffering=True, write_through=True)


class _Forwarding(io.BufferedIOBase):
    """Writes to another stream. Closing it leaves the other open, and so does a wrapper around it that is collected."""

    def __init__(self, target: TextIO) -> None:
        self._target = target

    @property
    def name(self) -> str:
        return "<stderr>"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._target.fileno()

    def isatty(self) -> bool:
        return self._target.isatty()

    def write(self, data: "Buffer") -> int:
        self._target.write(bytes(data).decode("utf-8", "replace"))
        self._target.flush()
        return len(bytes(data))
