"""Threads with event loops, in which the handlers of a server run.

A version 1 handler is a coroutine function that may block (`requests`, `time.sleep`) for any length of time. Run in a
thread of its own it delays nobody, and a caller can give it up. Who decides when to give up, and what the client is
told, is the caller's business; so is what is run.

The rules:

* One call at a time in a thread, so that a call which blocks delays no call that has already begun.
* A thread's loop lives as long as the thread and runs between calls too, so background tasks and clients that a handler
  kept (an `aiohttp.ClientSession` is bound to the loop that made it) go on working in the next call on that thread.
* A call comes back to the thread its `home` (the server object) used last, where that thread is free. Calls of one home
  that follow each other therefore share one loop; calls of one home that overlap do not.
* The thread of a live home goes to another home only when the limit leaves no other choice.
* A thread that blocks for ever cannot be ended. Its call counts as stuck from when its caller gave up until it returns,
  and when as many are stuck as may be the next call is refused at once instead of queued behind calls that never end.
* While every thread is taken by calls that may yet return, the next one waits a few seconds for a thread.
* All threads are daemons, also those behind `asyncio.to_thread`, so none of them keeps the process from exiting.
  (A `ThreadPoolExecutor` that a module makes itself does: `concurrent.futures` joins its threads at exit.)

A thread costs three file descriptors and its stack; a server gets its first one with its first call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar, cast

logger = logging.getLogger(__name__)

DEFAULT_LIMIT: Final = 32
"""Threads of one server: calls that run plus calls that are stuck."""

IDLE_SECONDS: Final = 60.0
"""How long a thread nobody calls home is kept for the next burst."""

WAIT_SECONDS: Final = 5.0
"""How long a call waits for a thread while all are taken by calls that may yet return."""

LIVE_BLOCKING_JOBS: Final = 32
"""Jobs of `asyncio.to_thread` and the like that run at once; the rest queue, as in asyncio's own executor."""

T = TypeVar("T")
P = ParamSpec("P")


class HandlerThreadsError(RuntimeError):
    """A handler could not be run, or did not end as a handler may."""


class NoFreeThreadError(HandlerThreadsError):
    """Every thread of the server is taken; the call was refused without being started."""

    def __init__(self, name: str, *, limit: int, busy: int, stuck: int) -> None:
        reason = f"{busy} calls of server {name!r} are running (limit {limit})"
        if stuck:
            reason += f", {stuck} of them were given up but have not returned"
        super().__init__(f"{reason}; the call was not started, try again later")
        self.limit = limit
        self.busy = busy
        self.stuck = stuck


class HandlerThreadsClosedError(HandlerThreadsError):
    """The server's threads were closed, after a reload or at shutdown."""


class HandlerExitError(HandlerThreadsError):
    """A handler tried to end more than its own call: `SystemExit`, `KeyboardInterrupt`, a cancellation of its own."""


class HandlerThreads:
    """The threads of one server, shared by its instances. May be called from several loops at once.

    `limit` may be changed at any time; it is read for each call.
    """

    def __init__(
        self,
        name: str,
        *,
        limit: int = DEFAULT_LIMIT,
        idle_seconds: float = IDLE_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self.name = name
        self._limit = limit
        self.idle_seconds = idle_seconds
        self.wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._threads: list[_LoopThread] = []
        self._homes: weakref.WeakKeyDictionary[object, _LoopThread] = weakref.WeakKeyDictionary()
        self._jobs = _BlockingJobs(self)
        self._waiters: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._busy = 0
        self._given_up = 0
        self._started = 0
        self._closed = False

    @property
    def limit(self) -> int:
        """Threads at once, and calls that may be stuck. A new value holds for calls that are waiting, too."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        if limit != self._limit:
            self._limit = limit
            self._wake_waiters()

    @property
    def busy(self) -> int:
        """Calls that have a thread now, stuck ones included."""
        return self._busy

    @property
    def stuck(self) -> int:
        """Calls, and jobs of `asyncio.to_thread`, whose caller gave up and which have not returned."""
        return self._given_up + self._jobs.given_up

    @property
    def threads(self) -> int:
        """Threads with a loop that exist now."""
        return len(self._threads)

    async def run(self, function: Callable[[], Awaitable[T]], *, home: object | None = None) -> T:
        """Await `function()` in a thread and hand back what it returns or raises.

        The handler sees the caller's context variables. When the caller is cancelled the handler's task is cancelled
        in its thread, and the caller goes on at once, whether or not the handler came back.

        Raises:
            NoFreeThreadError: As many calls as may be are stuck, or every thread stayed taken for `wait_seconds`.
                Nothing was started.
            HandlerThreadsClosedError: `close()` was called.
            HandlerExitError: The handler raised something that is no `Exception`, or cancelled itself.
        """
        call = _Call(function, asyncio.get_running_loop())
        thread = self._assign(call, home)
        if thread is None:
            thread = await self._wait_for_thread(call, home)
        # call_soon_threadsafe copies the caller's context, and create_task copies it once more for the handler.
        thread.loop.call_soon_threadsafe(self._begin, thread, call)
        try:
            return cast(T, await call.outcome)
        except asyncio.CancelledError:
            self._give_up(thread, call)
            raise

    def retire_idle(self) -> int:
        """End threads that are idle and that no live server object calls home; return how many."""
        with self._lock:
            before = time.monotonic() - self.idle_seconds
            idle = [t for t in self._threads if t.call is None and t.is_nobodys_home and t.idle_since <= before]
            self._threads = [t for t in self._threads if t not in idle]
        for thread in idle:
            thread.stop()
        return len(idle)

    def close(self, *, join_seconds: float = 0.0) -> None:
        """Refuse further calls and end every thread as soon as its call is done.

        Calls in flight finish. `join_seconds` bounds how long this waits for idle threads to be gone; a thread that
        is stuck is left behind, it is a daemon.
        """
        with self._lock:
            self._closed = True
            idle = [t for t in self._threads if t.call is None]
            self._threads = [t for t in self._threads if t.call is not None]
        self._wake_waiters()
        for thread in idle:
            thread.stop()
        deadline = time.monotonic() + join_seconds
        for thread in idle:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _assign(self, call: _Call, home: object | None) -> _LoopThread | None:
        """Give `call` a thread; None while all are taken by calls that may yet return."""
        with self._lock:
            if self._closed:
                raise HandlerThreadsClosedError(f"server {self.name!r} was closed or reloaded; connect again")
            if self.stuck >= self.limit:
                raise self._no_free_thread()
            if self._busy >= self.limit:
                return None
            thread = self._take(home)
            thread.call = call
            self._busy += 1
            return thread

    async def _wait_for_thread(self, call: _Call, home: object | None) -> _LoopThread:
        """Wait for a call to return: a burst of quick calls is no reason to refuse any of them."""
        deadline = time.monotonic() + self.wait_seconds
        while True:
            change = call.caller_loop.create_future()
            self._waiters.append((call.caller_loop, change))
            # Asked again after the place in the line is taken, so that a thread freed in between is not missed.
            thread = self._assign(call, home)
            if thread is not None:
                return thread
            try:
                await asyncio.wait_for(change, deadline - time.monotonic())
            except TimeoutError:
                raise self._no_free_thread() from None

    def _wake_waiters(self) -> None:
        """Let those who wait look again: a thread is free, or no more will be."""
        # Several threads may be in here: asking whether one is left and taking it would be two steps.
        with contextlib.suppress(IndexError):
            while True:
                loop, change = self._waiters.popleft()
                with contextlib.suppress(RuntimeError):  # the loop of that caller was closed
                    loop.call_soon_threadsafe(_set_done, change)

    def _no_free_thread(self) -> NoFreeThreadError:
        return NoFreeThreadError(self.name, limit=self.limit, busy=self._busy, stuck=self.stuck)

    def _take(self, home: object | None) -> _LoopThread:
        own = self._homes.get(home) if home is not None else None
        if own is not None and own.call is None and not own.stopped:
            return own
        thread = self._find_free()
        if home is not None and (own is None or own.stopped or own.holds_stuck_call):
            self._homes[home] = thread
            thread.home = weakref.ref(home)
        return thread

    def _find_free(self) -> _LoopThread:
        free = [t for t in self._threads if t.call is None]
        for thread in reversed(free):
            if thread.is_nobodys_home:
                return thread
        if len(self._threads) < self.limit:
            return self._start()
        if free:
            return min(free, key=lambda t: t.idle_since)
        return self._start()  # the limit was lowered below the threads that exist, and one has just ended

    def _start(self) -> _LoopThread:
        self._started += 1
        thread = _LoopThread(f"{self.name}-handler-{self._started}", self._jobs)
        self._threads.append(thread)
        return thread

    def _begin(self, thread: _LoopThread, call: _Call) -> None:
        call.task = thread.loop.create_task(self._perform(thread, call))

    async def _perform(self, thread: _LoopThread, call: _Call) -> None:
        result: Any = None
        error: BaseException | None = None
        call.started = True
        try:
            if not call.is_cancelled:
                result = await call.function()
        except Exception as exc:
            error = exc
        except BaseException as exc:
            # asyncio lets SystemExit and KeyboardInterrupt out of a task and through the loop, which would end the
            # thread here and the whole lane there. A cancellation is the caller's, who is gone, or the handler's own.
            error = HandlerExitError(f"the handler ended with {_describe(exc)}")
            error.__cause__ = exc
        self._finish(thread, call, result, error)

    def _finish(self, thread: _LoopThread, call: _Call, result: Any, error: BaseException | None) -> None:
        with self._lock:
            call.is_done = True
            self._busy -= 1
            thread.call = None
            thread.idle_since = time.monotonic()
            if call.given_up_at is not None:
                self._given_up -= 1
            is_last_call = self._closed
            if is_last_call and thread in self._threads:
                self._threads.remove(thread)
        if call.given_up_at is not None:
            late_seconds = time.monotonic() - call.given_up_at
            if late_seconds > 1.0:
                logger.info("A call of %s returned %.0f s after it was given up", self.name, late_seconds)
        else:
            call.settle(result, error)
        self._wake_waiters()
        call.task = None
        if is_last_call:
            thread.stop()

    def _give_up(self, thread: _LoopThread, call: _Call) -> None:
        with self._lock:
            if call.is_done:
                return
            call.given_up_at = time.monotonic()
            self._given_up += 1
        self._wake_waiters()
        thread.loop.call_soon_threadsafe(call.cancel)


class _Call:
    """One run of one handler. Its fields change under the lock, or in the thread of its task."""

    __slots__ = ("caller_loop", "function", "given_up_at", "is_cancelled", "is_done", "outcome", "started", "task")

    def __init__(self, function: Callable[[], Awaitable[Any]], caller_loop: asyncio.AbstractEventLoop) -> None:
        self.function = function
        self.caller_loop = caller_loop
        self.outcome: asyncio.Future[Any] = caller_loop.create_future()
        self.task: asyncio.Task[None] | None = None
        self.started = False
        self.is_cancelled = False
        self.is_done = False
        self.given_up_at: float | None = None

    def cancel(self) -> None:
        # A task cancelled before its first step never runs a line of its coroutine, so it would never be finished.
        self.is_cancelled = True
        if self.started and self.task is not None:
            self.task.cancel()

    def settle(self, result: Any, error: BaseException | None) -> None:
        try:
            self.caller_loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:
            logger.debug("The loop of a caller was closed before its call returned")

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.outcome.done():
            return
        if error is None:
            self.outcome.set_result(result)
        else:
            self.outcome.set_exception(error)


class _LoopThread:
    """One daemon thread that runs one event loop until it is stopped."""

    def __init__(self, name: str, jobs: _BlockingJobs) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(jobs)
        self.call: _Call | None = None
        self.home: weakref.ref[object] | None = None
        self.idle_since = time.monotonic()
        self.stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_nobodys_home(self) -> bool:
        return self.home is None or self.home() is None

    @property
    def holds_stuck_call(self) -> bool:
        return self.call is not None and self.call.given_up_at is not None

    def stop(self) -> None:
        self.stopped = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    def join(self, seconds: float) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            while not self.stopped:
                try:
                    self.loop.run_forever()
                except (SystemExit, KeyboardInterrupt) as exc:
                    # From a background task that a handler left behind; its other calls have nothing to do with it.
                    logger.warning("A background task in %s raised %s", self._thread.name, type(exc).__name__)
            self._end_leftovers()
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    def _end_leftovers(self) -> None:
        leftovers = asyncio.all_tasks(self.loop)
        for task in leftovers:
            task.cancel()
        if leftovers:
            self.loop.run_until_complete(asyncio.wait(leftovers, timeout=5.0))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())


class _BlockingJobs(ThreadPoolExecutor):
    """Default executor of the handler loops: what handlers hand to `asyncio.to_thread` and `run_in_executor(None, …)`.

    Its threads are daemons that nobody joins, where `concurrent.futures` joins its own at exit; and a job whose caller
    gave up is counted as stuck and its place given to another, where the standard executor would silently run dry.
    It is a `ThreadPoolExecutor` because `loop.set_default_executor` takes nothing else.
    """

    def __init__(self, owner: HandlerThreads) -> None:
        super().__init__(max_workers=1)  # never used: submit() is ours
        self._owner = owner
        self._jobs_lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._live = 0
        self.given_up = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        owner = self._owner
        if self.given_up >= owner.limit:
            raise NoFreeThreadError(owner.name, limit=owner.limit, busy=owner.busy, stuck=owner.stuck)
        job = _Job(self, lambda: fn(*args, **kwargs))
        with self._jobs_lock:
            self._waiting.append(job)
            self._add_thread()
        return cast("Future[T]", job)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: every loop calls this when it closes, and the executor belongs to all of them."""

    def count_given_up(self, job: _Job) -> None:
        with self._jobs_lock:
            if job.is_given_up or job.done():
                return
            job.is_given_up = True
            self.given_up += 1
            self._live -= 1
            self._add_thread()

    def _add_thread(self) -> None:
        if self._waiting and self._live < LIVE_BLOCKING_JOBS:
            self._live += 1
            threading.Thread(target=self._work, name=f"{self._owner.name}-blocking", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._jobs_lock:
                if not self._waiting:
                    self._live -= 1
                    return
                job = self._waiting.popleft()
            job.run()
            with self._jobs_lock:
                if job.is_given_up:
                    self.given_up -= 1
                    return  # its place among the live was given away


class _Job(Future[Any]):
    """A future that tells its executor when it is cancelled while it runs, which `Future` only refuses."""

    def __init__(self, executor: _BlockingJobs, function: Callable[[], Any]) -> None:
        super().__init__()
        self._executor = executor
        self._function = function
        self.is_given_up = False

    def cancel(self) -> bool:
        if super().cancel():
            return True
        self._executor.count_given_up(self)
        return False

    def run(self) -> None:
        if not self.set_running_or_notify_cancel():
            return
        try:
            result = self._function()
        except BaseException as exc:
            self.set_exception(exc)
        else:
            self.set_result(result)


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _describe(exc: BaseException) -> str:
    text = str(exc)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
