"""The executor behind `asyncio.to_thread` and `loop.run_in_executor(None, …)` in version 1 handlers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar, cast

from gateway.compat.errors import NoFreeThreadError

LIVE_JOBS: Final = 32
"""Jobs that run at once. The rest wait in a queue, as in asyncio's own executor."""

T = TypeVar("T")
P = ParamSpec("P")


class BlockingJobs(ThreadPoolExecutor):
    """Runs jobs in daemon threads, and counts those that were given up and have not returned.

    The standard executor differs in two ways that matter here. `concurrent.futures` joins its threads when the process
    exits, so a stuck job would keep the process alive. And a stuck job keeps its place, so an executor with enough
    stuck jobs stops working without a word. Here the place of a job that was given up goes to the next one.

    It is a `ThreadPoolExecutor` because `loop.set_default_executor` accepts nothing else. May be used from any thread.
    """

    def __init__(self, server_name: str, limit: Callable[[], int]) -> None:
        """`limit` returns how many jobs may be stuck; further ones are then refused."""
        super().__init__(max_workers=1)  # starts no thread: `submit` is ours
        self._server_name = server_name
        self._limit = limit
        self._jobs_lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._live = 0
        self.given_up = 0
        """Jobs that were given up and have not returned."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` in a thread soon.

        Raises:
            NoFreeThreadError: as many jobs as may be are stuck.
        """
        limit = self._limit()
        if self.given_up >= limit:
            raise NoFreeThreadError(self._server_name, limit=limit, busy=self.given_up, stuck=self.given_up)
        job = _Job(self, lambda: fn(*args, **kwargs))
        with self._jobs_lock:
            self._waiting.append(job)
            self._add_thread()
        return cast("Future[T]", job)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: each loop calls this when it closes, but all loops of a server share the executor."""

    def count_given_up(self, job: _Job) -> None:
        """Count a job as stuck and give its place to the next one."""
        with self._jobs_lock:
            if job.is_given_up or job.done():
                return
            job.is_given_up = True
            self.given_up += 1
            self._live -= 1
            self._add_thread()

    def _add_thread(self) -> None:
        if self._waiting and self._live < LIVE_JOBS:
            self._live += 1
            threading.Thread(target=self._work, name=f"{self._server_name}-blocking", daemon=True).start()

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
                    return  # another thread has taken its place


class _Job(Future[Any]):
    """A future that tells its executor when it is cancelled while it runs. A plain `Future` only says no."""

    def __init__(self, executor: BlockingJobs, function: Callable[[], Any]) -> None:
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
