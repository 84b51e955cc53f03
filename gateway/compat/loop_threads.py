"""Threads with an event loop each, and what happens when code of one loop touches things of another.

mcp 1.x runs everything of a server on one loop, so its authors never had to think of a second one. Here a call may run
on another loop than the rest of its server (`handler_threads` says when), and asyncio's objects are not made for that:
a future that is completed from a foreign thread wakes nobody, and its waiter hangs. Two rules prevent that:

* Completing a future from another thread wakes its loop. So a spilled call may put a job into a queue whose worker is
  on the home loop, and gets its answer.
* Waiting for something that belongs to another loop raises at once. asyncio raises `RuntimeError` by itself in most
  cases ("… is bound to a different event loop"); `ForeignLoopError` covers the rest and says what happened.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import re
import sys
import threading
import types
from asyncio.mixins import _LoopBoundMixin  # private: see `SpillLoop`
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, TypeVar, TypeVarTuple, cast

from gateway.compat.cpu_watch import own_cpu_clock
from gateway.compat.errors import ForeignLoopError

logger = logging.getLogger(__name__)

T = TypeVar("T")
_Ts = TypeVarTuple("_Ts")

LEFTOVERS_SECONDS: Final = 5.0
"""How long tasks that a handler left behind may take to end when their thread ends."""

ADVICE: Final = (
    "The call ran beside the server's own event loop, because another call was blocking that loop. Try again. "
    "The server's author can prevent this: await, or use asyncio.to_thread, instead of blocking. "
    'The server\'s operator can make such calls wait instead: set "when blocked" of the server to "wait".'
)

_LOOP_MODULES: Final = frozenset(
    {"selectors", "asyncio.base_events", "asyncio.selector_events", "asyncio.windows_events"}
)
"""Where the thread of a loop is that runs no handler."""

_FOREIGN: Final = f"This belongs to another event loop. {ADVICE}"

_MADE_ELSEWHERE: Final = (
    "It uses something that a call made while it ran beside the server's own event loop, because another call was "
    "blocking that loop. Connect or open it again, or reload the server. The server's author can prevent this: await, "
    "or use asyncio.to_thread, instead of blocking."
)

_ABOUT_LOOPS: Final = re.compile(
    r"(?:different|another|other) (?:event )?loop|loop is closed|(?:Timeout|timer).* inside (?:of )?a task",
    re.IGNORECASE,
)
"""What asyncio and libraries say when something of one loop is used on another."""

if sys.platform == "win32":
    _Default = asyncio.ProactorEventLoop
else:
    _Default = asyncio.SelectorEventLoop


class HandlerLoop(_Default):
    """asyncio's own loop, with `call_soon` made safe for other threads and waiting from other loops refused.

    Not uvloop: `python server.py` gave version 1's authors asyncio's loop, and libraries such as nest_asyncio need it.
    """

    def __init__(self) -> None:
        self.thread_id: int | None = None
        """The thread that the loop runs in, or None before that has started."""
        super().__init__()

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if threading.get_ident() == self.thread_id:
            return super().call_soon(callback, *args, context=context)
        # `Future.set_result` comes here too, from whichever thread it was called in.
        calling = asyncio._get_running_loop()
        if isinstance(calling, HandlerLoop):
            # Not before the caller's step is over, as on one loop: `Event.set` walks through the waiters, and one that
            # woke in the middle of it would change what it walks through.
            wake = functools.partial(self.call_soon_threadsafe, callback, *args, context=context)
            return calling.call_soon(wake)
        return self.call_soon_threadsafe(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        self._require_own_loop()
        return super().call_at(when, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        self._require_own_loop()
        return super().create_future()

    def _require_own_loop(self) -> None:
        # Threads without a loop of ours are not our business: a library may know what it does there.
        if threading.get_ident() != self.thread_id and isinstance(asyncio._get_running_loop(), HandlerLoop):
            raise ForeignLoopError(_FOREIGN)


class SpillLoop(HandlerLoop):
    """The loop of a spilled call. Locks, queues and events that all calls share stay free for the home loop.

    asyncio binds a lock for ever to the loop of the first call that has to wait for it. If that were a spilled call,
    every later call on the home loop would fail. So the binding to this loop is undone. The wait itself works, because
    completing a future wakes its loop from any thread.

    Waiting for a future of another loop is refused before asyncio refuses it: asyncio's refusal leaves the future in a
    state in which nobody else can wait for it either.
    """

    def create_future(self) -> asyncio.Future[Any]:
        future = super().create_future()
        # The caller is `Lock.acquire` or the like, which bound its lock in the same expression.
        waiting_for = sys._getframe(1).f_locals.get("self")
        if isinstance(waiting_for, _LoopBoundMixin) and cast(Any, waiting_for)._loop is self:
            cast(Any, waiting_for)._loop = None
        return future

    def create_task(self, coro: Generator[Any, None, T] | Coroutine[Any, Any, T], **options: Any) -> asyncio.Task[T]:
        return super().create_task(_refuse_foreign_futures(coro, self), **options)


async def _refuse_foreign_futures(coro: Generator[Any, None, T] | Coroutine[Any, Any, T], loop: SpillLoop) -> T:
    return cast(T, await _stepping(coro, loop))


@types.coroutine
def _stepping(coro: Any, loop: SpillLoop) -> Generator[Any, Any, Any]:
    """Run `coro` step by step, and raise in it where it waits for a future of another loop."""
    try:
        awaited = coro.send(None)
        while True:
            if asyncio.isfuture(awaited) and awaited.get_loop() is not loop:
                awaited._asyncio_future_blocking = False  # as if nobody had tried to wait for it
                awaited = coro.throw(ForeignLoopError(_FOREIGN))
                continue
            try:
                value = yield awaited
            except BaseException as error:  # a cancellation, or the coroutine is closed
                awaited = coro.throw(error)
            else:
                awaited = coro.send(value)
    except StopIteration as stop:
        return stop.value


def explained(error: Exception) -> Exception:
    """Return `error`, or one that adds why something of another loop was used. Call it where `error` was raised."""
    loop = asyncio._get_running_loop()
    if isinstance(error, ForeignLoopError) or not isinstance(loop, HandlerLoop):
        return error
    text = str(error)
    if not _ABOUT_LOOPS.search(text):
        return error
    reason = ADVICE if isinstance(loop, SpillLoop) else _MADE_ELSEWHERE
    explained_error = ForeignLoopError(f"{text.rstrip('.')}. {reason}")
    explained_error.__cause__ = error
    return explained_error


class LoopThread:
    """A daemon thread that runs one event loop until it is stopped.

    The loop outlives single calls, so background tasks and clients that a handler keeps go on working.
    """

    def __init__(self, name: str, loop: HandlerLoop) -> None:
        self.name = name
        self.loop = loop
        self.is_stopped = False
        self.cpu_clock: int | None = None
        """The clock of the thread's CPU time, or None before it has started and where the system has none."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_waiting_for_events(self) -> bool:
        """Whether the loop waits for something to do, or has just been given something. Asked from other threads."""
        frame = sys._current_frames().get(self.loop.thread_id or 0)
        return frame is None or frame.f_globals.get("__name__") in _LOOP_MODULES

    @property
    def running_task(self) -> asyncio.Task[Any] | None:
        """The task whose code the loop runs at this moment. Asked from other threads."""
        return asyncio.current_task(self.loop)

    @property
    def has_tasks(self) -> bool:
        """Whether tasks of the loop have not ended. Asked from other threads."""
        return bool(asyncio.all_tasks(self.loop))

    def stop(self) -> None:
        """End the thread as soon as its loop answers. Tasks that are left are cancelled."""
        if self.is_stopped:
            return
        self.is_stopped = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    def join(self, seconds: float) -> None:
        """Wait for the thread to end, for so long at most."""
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.thread_id = threading.get_ident()
        self.cpu_clock = own_cpu_clock()
        try:
            while not self.is_stopped:
                try:
                    self.loop.run_forever()
                except (SystemExit, KeyboardInterrupt) as exc:
                    # asyncio lets these out of the loop. They come from a background task that a handler left behind,
                    # and the other calls have nothing to do with it.
                    logger.warning("A background task in %s raised %s", self.name, type(exc).__name__)
            self._end_leftovers()
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    def _end_leftovers(self) -> None:
        leftovers = asyncio.all_tasks(self.loop)
        for task in leftovers:
            task.cancel()
        if leftovers:
            self.loop.run_until_complete(asyncio.wait(leftovers, timeout=LEFTOVERS_SECONDS))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
