"""Runs jobs that wait for a database in threads of their own, so that nobody else waits for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class BoundedJobs:
    """A few threads, a limited number of jobs that wait for them, and a time limit. Used on one event loop."""

    def __init__(
        self, name: str, *, threads: int, max_waiting: int, seconds: float, refusal: Callable[[], Exception]
    ) -> None:
        """`refusal` makes the exception of a job that failed, took longer than `seconds`, or was one too many."""
        self._executor = ThreadPoolExecutor(threads, name)
        self._max_waiting = max_waiting
        self._seconds = seconds
        self._refusal = refusal
        self._waiting = 0

    async def run(self, job: Callable[[], T]) -> T:
        """Return what `job` returns. Every failure, whatever its cause, is the one refusal."""
        if self._waiting >= self._max_waiting:
            raise self._refusal()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.get_running_loop().run_in_executor(self._executor, job)
        except Exception as error:
            raise self._refusal() from error
        finally:
            self._waiting -= 1

    def close(self, last_job: Callable[[], object] | None = None) -> None:
        """Let the threads end, after `last_job`. Does not wait for them."""
        if last_job is not None:
            self._executor.submit(last_job)
        self._executor.shutdown(wait=False)
