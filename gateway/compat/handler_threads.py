"""The threads that run a server's version 1 handlers: one home loop, and spill threads while that is blocked.

mcp 1.x runs the lifespan and all handlers of a server on one event loop, and its authors rely on that: locks, queues
and HTTP sessions are bound to the loop that they were first used on. A version 1 handler may also block that loop
(`requests`, `time.sleep`) for any length of time. On mcp 1.x that stops everybody; here it must not stop other users.
So:

* All calls of a server, of all users, run on its home loop, which has a thread of its own. Calls that never block
  therefore find what they would find on mcp 1.x.
* Calls wait in the inbox until the home loop takes them, one at a time. While calls wait, the caller's loop looks every
  few milliseconds what the home loop is doing. If it is found in the same task again and again, it is blocked.
* While it is blocked, calls from the inbox are spilled: each goes to a spill thread, which has a loop of its own and
  runs one call at a time. A call is taken out of the inbox once, so it never runs twice. Calls that had already begun
  on the home loop wait for it, as they do on mcp 1.x. With `when_blocked="wait"` nothing is spilled.
* What a spilled call may use of the home loop, and what it cannot, is the subject of `loop_threads`.
* Of all these threads only a few compute at once (`max_computing`), because they share the GIL with the whole process.
  Calls beyond that wait for their turn. Threads that wait for the network or the like do not count, and neither do
  calls that were given up: otherwise two endless loops would be the end of the server. For the same reason one call is
  let through every few seconds (`wait_seconds`) whatever the others do.
* A thread that blocks for ever cannot be ended. Its call counts as stuck from when its caller gave up until it returns.
  When as many are stuck as may be (`limit`), the next call is refused at once.
* If a call was given up and still blocks the home loop long afterwards, the home loop is replaced. Lifespans that were
  entered on the old one end.
* All threads are daemons, so none of them keeps the process from exiting. (A `ThreadPoolExecutor` that a module makes
  itself does: `concurrent.futures` joins its threads at exit.)

Who decides when to give up, and what the client is told, is the caller's business; so is what is run.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, Protocol, TypeVar, cast

from gateway.compat.blocking_jobs import BlockingJobs
from gateway.compat.cpu_watch import ComputingBound, CpuUse
from gateway.compat.errors import HandlerExitError, HandlerThreadsClosedError, NoFreeThreadError
from gateway.compat.loop_threads import HandlerLoop, LoopThread, SpillLoop

logger = logging.getLogger(__name__)

WhenBlocked = Literal["spill", "wait"]
"""What becomes of calls that arrive while the home loop is blocked."""

DEFAULT_LIMIT: Final = 32
"""Threads of one server: the home loop's, and one for each call that was spilled."""

LOOK_SECONDS: Final = 0.008
"""How often the home loop is looked at while calls wait for it."""

LOOKS: Final = 4
"""How often the home loop must be found where it was at the look before. Short handlers are never found twice."""

DEFAULT_MAX_COMPUTING: Final = 2
"""Threads of one server that may compute at once, the home loop's included."""

GRACE_SECONDS: Final = 1.0
"""How long a call that was given up may take to clean up, where it does not block, before it counts as stuck."""

LOST_SECONDS: Final = 30.0
"""How long after it was given up a call may block the home loop before that is replaced."""

IDLE_SECONDS: Final = 60.0
"""How long a spill thread without work is kept for the next time."""

WAIT_SECONDS: Final = 5.0
"""How long a call waits while the home loop is blocked and all spill threads are taken."""

T = TypeVar("T")


class LoopUser(Protocol):
    """Something that lives on the home loop for longer than a call: a lifespan."""

    def lose_loop(self) -> None:
        """Called in any thread when the home loop is replaced."""


class HandlerThreads:
    """The threads of one server, shared by its instances.

    `run`, `limit` and `when_blocked` belong to the caller's loop (the server's lane); the rest may be used from any
    thread. `limit` and `when_blocked` may be changed at any time.
    """

    def __init__(
        self,
        name: str,
        *,
        limit: int = DEFAULT_LIMIT,
        when_blocked: WhenBlocked = "spill",
        max_computing: int = DEFAULT_MAX_COMPUTING,
        idle_seconds: float = IDLE_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
        lost_seconds: float = LOST_SECONDS,
    ) -> None:
        self.name = name
        self._limit = limit
        self._when_blocked: WhenBlocked = when_blocked
        self.idle_seconds = idle_seconds
        self.wait_seconds = wait_seconds
        self.lost_seconds = lost_seconds
        self.spilled = 0
        """Calls that ran beside the home loop so far."""
        self._jobs = BlockingJobs(name, lambda: self._limit)
        # Guards what follows. Not held while anything of a handler runs.
        self._lock = threading.Lock()
        self._inbox: deque[_Call] = deque()
        self._given_up: set[_Call] = set()
        self._home: _Home | None = None
        self._former_homes: list[_Home] = []
        self._spill_threads: list[_SpillThread] = []
        self._started = 0
        self._is_blocked = False
        self._is_closed = False
        self._computing = ComputingBound(max_computing, LOOK_SECONDS)
        self._let_through_at = 0.0
        # Of the caller's loop only.
        self._watching: asyncio.AbstractEventLoop | None = None
        self._seen: asyncio.Task[Any] | None = None
        self._suspicion = 0
        self._blocker: asyncio.Task[Any] | None = None

    @property
    def limit(self) -> int:
        """Threads at once, and calls that may be stuck. A new value holds for calls that are waiting, too."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit

    @property
    def when_blocked(self) -> WhenBlocked:
        """What becomes of calls that arrive while the home loop is blocked."""
        return self._when_blocked

    @when_blocked.setter
    def when_blocked(self, when_blocked: WhenBlocked) -> None:
        self._when_blocked = when_blocked

    @property
    def max_computing(self) -> int:
        """How many threads may compute at once, the home loop's included."""
        return self._computing.limit

    @max_computing.setter
    def max_computing(self, max_computing: int) -> None:
        self._computing.limit = max_computing

    @property
    def busy(self) -> int:
        """Calls that run, stuck ones included."""
        with self._lock:
            return self._count_running()

    @property
    def stuck(self) -> int:
        """Calls, and jobs of `asyncio.to_thread`, whose caller gave up and which have not returned."""
        given_up = self._jobs.given_up
        if self._given_up:
            now = time.monotonic()
            with self._lock:
                given_up += sum(call.is_stuck(now) for call in self._given_up)
        return given_up

    @property
    def threads(self) -> int:
        """Threads with a loop that exist now."""
        return len(self._spill_threads) + len(self._former_homes) + (self._home is not None)

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await `function()` on the home loop, or on a spill thread's, and return what it returns or raises.

        The handler sees the caller's context variables. When the caller is cancelled, the handler's task is cancelled,
        and the caller goes on at once, whether or not the handler came back.

        Raises:
            NoFreeThreadError: As many calls as may be are stuck, or the home loop was blocked and every spill thread
                taken for `wait_seconds`. Nothing was started.
            HandlerThreadsClosedError: `close()` was called.
            HandlerExitError: The handler raised something that is not an `Exception`, or cancelled itself.
        """
        loop = asyncio.get_running_loop()
        call = _Call(function, loop)
        if (self._given_up or self._jobs.given_up) and self.stuck >= self._limit:
            raise self._no_free_thread()
        with self._lock:
            if self._is_closed:
                raise HandlerThreadsClosedError(f"server {self.name!r} was closed or reloaded; connect again")
            home = self._home or self._start_home()
            self._inbox.append(call)
            must_wake = not home.is_taking
            home.is_taking = True
        if must_wake:
            home.loop.call_soon_threadsafe(self._take_next, home)
        if self._is_blocked and home.is_running(self._blocker):
            self._spill()
        if self._watching is not loop:
            self._start_watching(loop)
        try:
            return cast(T, await call.outcome)
        except asyncio.CancelledError:
            self._give_up(call)
            raise

    def use_home(self, user: LoopUser) -> HandlerLoop:
        """The home loop, kept until `release_home`."""
        with self._lock:
            if self._is_closed:
                raise HandlerThreadsClosedError(f"server {self.name!r} was closed or reloaded; connect again")
            home = self._home or self._start_home()
            home.users.add(user)
            return home.loop

    def release_home(self, user: LoopUser) -> None:
        """Let go of the loop that `use_home` returned."""
        with self._lock:
            for home in self._homes():
                home.users.discard(user)
            self._stop_unused_homes()

    def keep_up(self) -> None:
        """Replace a home loop that is lost, and end spill threads that have been idle for long. Call it regularly."""
        self._replace_lost_home()
        before = time.monotonic() - self.idle_seconds
        with self._lock:
            # One whose calls left tasks behind goes on running them.
            idle = [t for t in self._spill_threads if t.call is None and t.idle_since <= before and not t.has_tasks]
            self._spill_threads = [t for t in self._spill_threads if t not in idle]
        for thread in idle:
            thread.stop()

    def close(self, *, join_seconds: float = 0.0) -> None:
        """Refuse further calls and end every thread as soon as its calls are done.

        Calls in flight finish. `join_seconds` bounds how long this waits for idle threads to be gone; a thread that is
        blocked is left behind.
        """
        with self._lock:
            self._is_closed = True
            idle: list[LoopThread] = [t for t in self._spill_threads if t.call is None]
            self._spill_threads = [t for t in self._spill_threads if t.call is not None]
            idle += self._stop_unused_homes()
        for thread in idle:
            thread.stop()
        deadline = time.monotonic() + join_seconds
        for thread in idle:
            thread.join(max(0.0, deadline - time.monotonic()))

    # -- The home loop

    def _start_home(self) -> _Home:
        self._started += 1
        self._home = _Home(f"{self.name}-handlers-{self._started}", self._jobs)
        return self._home

    def _take_next(self, home: _Home) -> None:
        """Begin the next call. Runs in the home loop.

        One call at a time: what has not begun when a handler blocks can still be spilled.
        """
        with self._lock:
            call = self._pop(home) if home is self._home else None
            goes_on = home.is_taking = call is not None and bool(self._inbox)
            if not self._inbox:
                self._is_blocked = False
        if call is not None:
            self._begin(home, call)
        if goes_on:
            home.loop.call_soon(self._take_next, home)

    def _pop(self, thread: _Home | _SpillThread) -> _Call | None:
        """Take the longest waiting call out of the inbox. Holds the lock."""
        if not self._inbox:
            return None
        call = self._inbox.popleft()
        call.thread = thread
        if isinstance(thread, _Home):
            thread.running += 1
        else:
            thread.call = call
            thread.cpu.restart()
            self.spilled += 1
        return call

    def _begin(self, thread: LoopThread, call: _Call) -> None:
        """Start a call's task. Runs in the loop of `thread`."""
        if isinstance(thread, _SpillThread):
            thread.began_at = time.perf_counter(), time.thread_time()
        call.task = thread.loop.create_task(self._perform(call), context=call.context)

    async def _perform(self, call: _Call) -> None:
        result: Any = None
        error: BaseException | None = None
        call.is_started = True
        try:
            if not call.is_cancelled:
                result = await call.function()
        except Exception as exc:
            error = exc
        except BaseException as exc:
            # asyncio lets SystemExit and KeyboardInterrupt out of a task and through the loop, which would end the
            # thread. A cancellation here is the handler's own, or its caller's, who does not wait any more.
            error = HandlerExitError(f"the handler ended with {_describe(exc)}")
            error.__cause__ = exc
        self._finish(call, result, error)

    def _finish(self, call: _Call, result: Any, error: BaseException | None) -> None:
        next_call = None
        thread = call.thread
        with self._lock:
            call.is_done = True
            self._given_up.discard(call)
            if isinstance(thread, _SpillThread):
                thread.call = None
                thread.idle_since = time.monotonic()
                began_at, cpu_began_at = thread.began_at
                self._computing.note_end(thread.cpu, time.thread_time() - cpu_began_at, time.perf_counter() - began_at)
                if self._inbox and self._may_spill and self._may_compute():
                    next_call = self._pop(thread)
                if self._is_closed and next_call is None:
                    if thread in self._spill_threads:
                        self._spill_threads.remove(thread)
                    thread.stop()
            elif isinstance(thread, _Home):
                thread.running -= 1
                self._is_blocked = self._is_blocked and bool(self._inbox)
            if self._is_closed or self._former_homes:
                self._stop_unused_homes()
        if call.given_up_at is None:
            call.settle(result, error)
        else:
            late_seconds = time.monotonic() - call.given_up_at
            if late_seconds > GRACE_SECONDS:
                logger.info("A call of %s returned %.0f s after it was given up", self.name, late_seconds)
        call.task = None
        if next_call is not None and thread is not None:
            thread.loop.call_soon(self._begin, thread, next_call)

    def _give_up(self, call: _Call) -> None:
        with self._lock:
            if call.is_done:
                return
            if call.thread is None:
                self._inbox.remove(call)
                self._stop_unused_homes()
                return
            call.given_up_at = time.monotonic()
            self._given_up.add(call)
        call.thread.loop.call_soon_threadsafe(call.cancel)

    def _replace_lost_home(self) -> None:
        now = time.monotonic()
        with self._lock:
            home = self._home
            if home is None or not any(call.thread is home for call in self._given_up):
                return
            asked_at = home.asked_at  # read once: the home's own thread takes it back as it answers
            if asked_at is None:
                home.asked_at = now
                home.loop.call_soon_threadsafe(home.answer)
                return
            seconds = now - asked_at
            if seconds < self.lost_seconds:
                return
            self._former_homes.append(home)
            users, home.users = home.users, set()
            self._is_blocked = False
            fresh = self._start_home()
            fresh.is_taking = bool(self._inbox)
        logger.warning(
            "A call of %s was given up and still blocks the server's event loop after %.0f s. The server gets a new "
            "loop. Clients that its module keeps may belong to the old one: reload the server if its calls fail.",
            self.name,
            seconds,
        )
        if fresh.is_taking:
            fresh.loop.call_soon_threadsafe(self._take_next, fresh)
        for user in users:
            user.lose_loop()

    def _homes(self) -> list[_Home]:
        return [*self._former_homes, *([self._home] if self._home is not None else [])]

    def _stop_unused_homes(self) -> list[LoopThread]:
        """End home loops that nothing will run on any more; return them. Holds the lock."""
        unused = [home for home in self._former_homes if not home.running and not home.users]
        home = self._home
        if self._is_closed and home is not None and not (home.running or home.users or self._inbox):
            self._home = None
            unused.append(home)
        for thread in unused:
            if thread in self._former_homes:
                self._former_homes.remove(thread)
            thread.stop()
        return list(unused)

    # -- Watching the home loop, in the caller's loop

    def _start_watching(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watching = loop
        self._seen, self._suspicion = None, 0
        loop.call_later(LOOK_SECONDS, self._watch, loop)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Find out whether calls wait because the home loop is blocked, and spill them if so."""
        if self._watching is not loop:
            return  # another loop calls this server by now
        home = self._home
        if not self._inbox or home is None:
            self._watching = self._seen = None
            if not self._is_blocked:
                self._blocker = None
            return
        if home.is_running(self._seen):
            self._suspicion += 2
        else:
            # Not forgotten at once: several short blocks in a row delay calls like one long block.
            self._suspicion = max(0, self._suspicion - 1)
            self._seen = home.running_task
        with self._lock:
            self._computing.look([(thread.cpu_clock, thread.cpu) for thread in self._working_threads()])
        if self._is_blocked and home.is_running(self._blocker):
            self._spill()
        elif self._suspicion >= 2 * LOOKS and self._when_blocked == "spill":
            self._blocker = self._seen
            arrived_before = time.monotonic() - LOOKS * LOOK_SECONDS
            with self._lock:
                # A call that came after the others were spilled may find that the loop has just become free.
                is_old = bool(self._inbox) and self._inbox[0].arrived_at < arrived_before
                self._is_blocked = self._is_blocked or is_old
            self._spill()
        self._refuse()
        loop.call_later(LOOK_SECONDS, self._watch, loop)

    @property
    def _may_spill(self) -> bool:
        return self._is_blocked and self._when_blocked == "spill"

    def _spill(self) -> None:
        """Give calls that wait in the inbox to spill threads, as far as there are any."""
        while True:
            with self._lock:
                if not self._inbox or not self._may_spill:
                    return
                thread = self._find_spill_thread()
                if thread is None:
                    return
                call = self._pop(thread)
            assert call is not None
            thread.loop.call_soon_threadsafe(self._begin, thread, call)

    def _find_spill_thread(self) -> _SpillThread | None:
        if self._count_taken() >= self._limit or not self._may_compute():
            return None
        for thread in reversed(self._spill_threads):
            if thread.call is None:
                return thread
        self._started += 1
        thread = _SpillThread(f"{self.name}-spill-{self._started}", self._jobs)
        self._spill_threads.append(thread)
        return thread

    def _refuse(self) -> None:
        """Refuse calls that have waited too long for a thread, or that have no prospect of one."""
        is_hopeless = self.stuck >= self._limit
        if not is_hopeless and not (self._may_spill and self._count_taken() >= self._limit):
            return
        arrived_before = time.monotonic() - (0.0 if is_hopeless else self.wait_seconds)
        refused: list[_Call] = []
        with self._lock:
            while self._inbox and self._inbox[0].arrived_at < arrived_before:
                refused.append(self._inbox.popleft())
                refused[-1].is_done = True
        for call in refused:
            call.settle(None, self._no_free_thread())

    def _count_running(self) -> int:
        spilled = sum(thread.call is not None for thread in self._spill_threads)
        return spilled + sum(home.running for home in self._homes())

    def _count_taken(self) -> int:
        """Threads that calls cannot have. Asked while the home loop is blocked."""
        return sum(thread.call is not None for thread in self._spill_threads) + len(self._homes())

    def _may_compute(self) -> bool:
        """Whether the next call may begin although it may compute. Holds the lock."""
        if self._computing.has_room([thread.cpu for thread in self._working_threads()]):
            return True
        now = time.monotonic()
        if now - max(self._inbox[0].arrived_at, self._let_through_at) < self.wait_seconds:
            return False
        self._let_through_at = now
        return True

    def _working_threads(self) -> list[_Home | _SpillThread]:
        """Threads that run something for somebody. Asked while the home loop is blocked. Holds the lock."""
        spilled = [t for t in self._spill_threads if t.call is not None and t.call.given_up_at is None]
        home = self._home
        if home is None or any(call.task is not None and call.task is home.running_task for call in self._given_up):
            return [*spilled]
        return [home, *spilled]

    def _no_free_thread(self) -> NoFreeThreadError:
        with self._lock:
            busy = self._count_taken()
        return NoFreeThreadError(self.name, limit=self._limit, busy=busy, stuck=self.stuck)


class _Call:
    """One run of one handler. Its fields change under the lock, or in the thread of its task."""

    __slots__ = (
        "arrived_at",
        "caller_loop",
        "context",
        "function",
        "given_up_at",
        "is_cancelled",
        "is_done",
        "is_started",
        "outcome",
        "task",
        "thread",
    )

    def __init__(self, function: Callable[[], Awaitable[Any]], caller_loop: asyncio.AbstractEventLoop) -> None:
        self.function = function
        self.caller_loop = caller_loop
        self.context = contextvars.copy_context()
        self.outcome: asyncio.Future[Any] = caller_loop.create_future()
        self.arrived_at = time.monotonic()
        self.thread: LoopThread | None = None
        """Where it runs, or None while it waits in the inbox."""
        self.task: asyncio.Task[None] | None = None
        self.is_started = False
        self.is_cancelled = False
        self.is_done = False
        self.given_up_at: float | None = None

    def is_stuck(self, now: float) -> bool:
        """Whether a call that was given up blocks its thread, or does not let itself be cancelled."""
        if isinstance(self.thread, _SpillThread) or self.given_up_at is None:
            return True
        is_blocking = self.task is not None and self.thread is not None and self.thread.running_task is self.task
        return is_blocking or now - self.given_up_at > GRACE_SECONDS

    def cancel(self) -> None:
        # A task that is cancelled before its first step never runs a line of its coroutine, so it would never finish.
        self.is_cancelled = True
        if self.is_started and self.task is not None:
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


class _Home(LoopThread):
    """The thread of a home loop. Its fields change under the lock."""

    def __init__(self, name: str, jobs: BlockingJobs) -> None:
        loop = HandlerLoop()
        loop.set_default_executor(jobs)
        self.is_taking = False
        """Whether `_take_next` will run in the loop."""
        self.running = 0
        self.users: set[LoopUser] = set()
        self.cpu = CpuUse()
        self.asked_at: float | None = None
        """When the loop was asked to answer; None once it has."""
        super().__init__(name, loop)

    def is_running(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether the loop runs `task`, or with None a callback that belongs to no task."""
        return self.running_task is task and (task is not None or not self.is_waiting_for_events)

    def answer(self) -> None:
        """Show that the loop is not blocked. Runs in the loop."""
        self.asked_at = None


class _SpillThread(LoopThread):
    """A thread for one call at a time. Its fields change under the lock."""

    def __init__(self, name: str, jobs: BlockingJobs) -> None:
        loop = SpillLoop()
        loop.set_default_executor(jobs)
        self.call: _Call | None = None
        self.cpu = CpuUse()
        self.began_at = 0.0, 0.0
        """When the call began: in time, and in CPU time of the thread."""
        self.idle_since = time.monotonic()
        super().__init__(name, loop)


def _describe(exc: BaseException) -> str:
    text = str(exc)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


__all__ = ["HandlerThreads", "LoopUser", "WhenBlocked"]
