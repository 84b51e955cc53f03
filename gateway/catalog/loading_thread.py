"""What a module finds in the thread that loads it: an event loop of its own, and contexts of its own."""

import asyncio
import asyncio.events
import asyncio.tasks
import contextlib
import decimal
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _LoadingLoop(asyncio.SelectorEventLoop):
    """The event loop of a module that is loaded. It lasts as long as the module keeps it."""

    def __del__(self) -> None:
        if not self.is_running():
            # The garbage collector may have closed its sockets first.
            with contextlib.suppress(OSError, ValueError):
                self.close()


def _release(loop: "weakref.ref[_LoadingLoop]") -> None:
    """Have a loop closed now, if nobody keeps it: it refers to itself, and would wait for the garbage collector."""
    kept = loop()
    if kept is None or kept.is_running() or kept.is_closed():
        return
    # Private in Python, which has no other way: the loop's own reader is what refers to it (BaseSelectorEventLoop).
    wakeups: Any = kept
    descriptor = wakeups._ssock.fileno()
    wakeups._remove_reader(descriptor)
    del kept, wakeups
    if (still_kept := loop()) is not None:
        wakeups = still_kept
        wakeups._add_reader(descriptor, wakeups._read_from_self)


@contextmanager
def own_event_loop() -> Iterator[None]:
    """Let a module call `asyncio.run` and `asyncio.get_event_loop` while it is loaded, in any thread.

    Some servers load the application while their own event loop runs (uvicorn does). That loop is hidden meanwhile.
    """
    running, kept = asyncio._get_running_loop(), _current_loop()
    task = _swapped_task(running, None)
    asyncio._set_running_loop(None)
    loop = _LoadingLoop()
    asyncio.set_event_loop(loop)
    own = weakref.ref(loop)
    del loop
    try:
        with decimal.localcontext():
            yield
    finally:
        _set_current_loop(kept)
        asyncio._set_running_loop(running)
        _swapped_task(running, task)
        _release(own)


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
