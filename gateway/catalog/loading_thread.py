"""What a module finds in the thread that loads it: an event loop of its own, and contexts of its own."""

import asyncio
import asyncio.events
import asyncio.tasks
import decimal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _LoadingLoop(asyncio.SelectorEventLoop):
    """The event loop of a module that is loaded. It lasts as long as the module keeps it."""

    def __del__(self) -> None:
        if not self.is_running():
            self.close()


@contextmanager
def own_event_loop() -> Iterator[None]:
    """Let a module call `asyncio.run` and `asyncio.get_event_loop` while it is loaded, in any thread.

    Some servers load the application while their own event loop runs (uvicorn does). That loop is hidden meanwhile.
    """
    running, kept = asyncio._get_running_loop(), _current_loop()
    task = _swapped_task(running, None)
    asyncio._set_running_loop(None)
    asyncio.set_event_loop(_LoadingLoop())
    try:
        with decimal.localcontext():
            yield
    finally:
        _set_current_loop(kept)
        asyncio._set_running_loop(running)
        _swapped_task(running, task)


def _current_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that was set for this thread. Asking for it in public would make one."""
    found: asyncio.AbstractEventLoop | None = getattr(_policy_state(), "_loop", None)
    return found


def _set_current_loop(loop: asyncio.AbstractEventLoop | None) -> None:
    asyncio.set_event_loop(loop)
    state = _policy_state()
    if loop is None and hasattr(state, "_set_called"):
        # As if none had ever been set: the next one who asks gets a new loop.
        state._set_called = False


def _policy_state() -> Any:
    # The public function is deprecated since Python 3.14.
    get_policy = getattr(asyncio.events, "_get_event_loop_policy", None) or asyncio.get_event_loop_policy
    return getattr(get_policy(), "_local", None)


def _swapped_task(loop: asyncio.AbstractEventLoop | None, task: Any) -> Any:
    """Make `task` the current one of a loop and return the former: since Python 3.12 only one can be current."""
    swap = getattr(asyncio.tasks, "_swap_current_task", None)
    return None if swap is None or loop is None else swap(loop, task)
