"""The event loop that serves requests: how other threads reach it, and the host's background tasks on it."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVarTuple

from gateway.waiting import Alarms
from gateway.wakeups import Wakeups

logger = logging.getLogger(__name__)

_Ts = TypeVarTuple("_Ts")


class ServingLoop:
    """The host's loop.

    Threads: `call_soon` may be called from any thread. Everything else is used on the loop itself.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wakeups: Wakeups | None = None
        self.alarms = Alarms()
        """For time limits that are hardly ever reached."""
        self._tasks: set[asyncio.Task[None]] = set()

    def bind(self) -> None:
        """Take the running loop as the host's loop. Until then `call_soon` does nothing."""
        self._loop = asyncio.get_running_loop()
        self._wakeups = Wakeups(self._loop)

    @property
    def wakeups(self) -> Wakeups:
        """The loop's, for what is called once for each message. Only after `bind`."""
        assert self._wakeups is not None
        return self._wakeups

    def call_soon(self, callback: Callable[[*_Ts], object], *args: *_Ts) -> None:
        """Call `callback(*args)` on the loop soon. Does nothing once the loop is closed."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(callback, *args)

    def start_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run `coroutine` in the background. Its exception is logged."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def cancel_tasks(self) -> None:
        """Cancel the background tasks. A task may be waiting for a thread, so this does not wait for them to end."""
        for task in list(self._tasks):
            task.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("A background task failed", exc_info=error)
