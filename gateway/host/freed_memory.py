"""Gives freed memory back to the system. glibc keeps most of it for the process.

Two of its habits matter here. Once a large block was freed, blocks of that size are taken from the heap and not from
the system any more, and a heap shrinks at its end only: a burst of large bodies left some hundred MiB behind. And what
lies free between blocks that are in use is never given back, unless somebody asks.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

logger = logging.getLogger(__name__)

LARGE_BYTES: Final = 256 * 1024
"""Blocks of this size and more come from the system, and go back to it as soon as they are freed."""

INTERVAL_SECONDS: Final = 30.0
"""How often freed memory is given back."""

_M_MMAP_THRESHOLD: Final = -3


class FreedMemory:
    """Gives freed memory back now and then. Does nothing where the C library is not glibc."""

    def __init__(self) -> None:
        self._trim: Callable[[int], Any] | None = None
        self._due_at = time.monotonic() + INTERVAL_SECONDS

    def start(self) -> None:
        """Have large blocks come from the system."""
        if sys.platform != "linux":
            return
        try:
            library = ctypes.CDLL(None)
            library.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
            self._trim = library.malloc_trim
        except (OSError, AttributeError):
            logger.debug("The C library is not glibc")

    def keep_up(self) -> None:
        """Give freed memory back if it is time to. Called on the host's loop; the work is done in a thread."""
        now = time.monotonic()
        if self._trim is None or now < self._due_at:
            return
        self._due_at = now + INTERVAL_SECONDS
        # It takes a few milliseconds, and longer if there is much to give back.
        threading.Thread(target=self._trim, args=(0,), name="freed-memory", daemon=True).start()
