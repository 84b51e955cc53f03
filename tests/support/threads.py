"""Several threads that do the same thing at once, to show races."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

InThreads = Callable[[Callable[[], object]], list[Exception]]
"""The fixture `in_threads_at_once`."""

SECONDS = 0.5


def run_in_threads_at_once(step: Callable[[], object]) -> list[Exception]:
    """Repeat `step` in four threads for half a second, and return the exceptions that it raised.

    The threads take turns as often as the interpreter allows, so that a race shows soon.
    """
    failures: list[Exception] = []
    is_over = threading.Event()

    def repeat() -> None:
        try:
            while not is_over.is_set():
                step()
        except Exception as error:
            failures.append(error)
            is_over.set()

    threads = [threading.Thread(target=repeat) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        is_over.wait(SECONDS)
        is_over.set()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return failures
