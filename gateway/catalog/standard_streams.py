"""Keeps what servers print out of standard output, where commands write a protocol or a result."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress


@contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """Send to standard error what is printed inside the block.

    Both `sys.stdout` and the descriptor: C code and child processes write to the descriptor.
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
