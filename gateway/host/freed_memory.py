"""Gives unused memory back to the system. Python and glibc keep much of it otherwise.

* After a large block was freed, glibc takes further blocks of that size from the heap, and the heap shrinks only at its
  end. A burst of large bodies left some hundred MiB behind.
* glibc does not give back free memory between blocks that are in use, except in `malloc_trim`.
* Python starts its garbage collection by the number of new objects, not by their size. Some hundred errors whose
  tracebacks hold a body of 4 MiB each are few objects.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from gateway.process_memory import resident_bytes

logger = logging.getLogger(__name__)

LARGE_BYTES: Final = 256 * 1024
"""Blocks of this size and more come from the system, and go back to it as soon as they are freed."""

INTERVAL_SECONDS: Final = 30.0
"""How often free memory is given back. Full collections are not more frequent."""

GROWTH_BYTES: Final = 64 * 1024 * 1024
"""After this much growth, young objects are collected. That takes some milliseconds."""

GROWTH_SHARE: Final = 0.25
"""After this much growth since the last full collection, there is another one. It takes 0.3 s with 10 000 sessions.
(This is Python's own rule for old objects, with bytes in place of objects.)"""

_M_MMAP_THRESHOLD: Final = -3


class FreedMemory:
    """Gives memory back now and then. Does nothing where the C library is not glibc."""

    def __init__(self) -> None:
        self._trim: Callable[[int], Any] | None = None
        self._trimming: threading.Thread | None = None
        self._due_at = 0.0
        self._usual_bytes = 0
        """What the process held when it was looked at last."""
        self._least_bytes = 0
        """What it held when all objects were looked at last, or less."""

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
            return
        self._due_at = time.monotonic() + INTERVAL_SECONDS
        self._usual_bytes = self._least_bytes = resident_bytes()

    def keep_up(self) -> None:
        """Give memory back if it is time to. Called on the host's loop every second.

        Garbage is looked for here, because what it holds may belong to the loop; the rest is done in a thread.
        """
        if self._trim is None or (self._trimming is not None and self._trimming.is_alive()):
            return
        held, is_due = resident_bytes(), time.monotonic() >= self._due_at
        has_grown = held > self._usual_bytes + GROWTH_BYTES
        if not is_due and not has_grown:
            return
        if is_due:
            self._due_at = time.monotonic() + INTERVAL_SECONDS
        if is_due and held > self._least_bytes * (1 + GROWTH_SHARE) + GROWTH_BYTES:
            gc.collect()
            self._least_bytes = resident_bytes()
        elif has_grown:
            gc.collect(1)
        self._trimming = threading.Thread(target=self._give_back, name="freed-memory", daemon=True)
        self._trimming.start()

    def _give_back(self) -> None:
        assert self._trim is not None
        self._trim(0)
        self._usual_bytes = resident_bytes()
        self._least_bytes = min(self._least_bytes, self._usual_bytes)
