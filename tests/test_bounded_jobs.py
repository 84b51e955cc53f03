"""Jobs that wait for a database: how many, how long, and what a failure is."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gateway.bounded_jobs import BoundedJobs


class Refused(Exception):
    pass


def jobs(seconds: float = 10.0) -> BoundedJobs:
    return BoundedJobs("test", threads=1, max_waiting=2, seconds=seconds, refusal=Refused)


async def test_result_of_a_job_is_returned_from_a_thread_of_its_own() -> None:
    bounded = jobs()
    assert (await bounded.run(lambda: threading.current_thread().name)).startswith("test")
    bounded.close()


async def test_failure_of_a_job_is_the_refusal_and_its_cause_is_kept() -> None:
    bounded = jobs()
    with pytest.raises(Refused) as caught:
        await bounded.run(lambda: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    bounded.close()


async def test_job_that_takes_too_long_is_refused_and_one_too_many_at_once() -> None:
    bounded, gate = jobs(0.05), threading.Event()
    waiting = [asyncio.create_task(bounded.run(gate.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Refused) as caught:
        await bounded.run(gate.wait)
    assert caught.value.__cause__ is None
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result.__cause__) for result in results if isinstance(result, Refused)] == [TimeoutError] * 2
    gate.set()
    bounded.close()


async def test_after_a_refusal_there_is_room_again() -> None:
    bounded = jobs()
    for _ in range(5):
        with pytest.raises(Refused):
            await bounded.run(lambda: 1 / 0)
    assert await bounded.run(lambda: "well") == "well"
    bounded.close()


async def test_last_job_runs_when_the_threads_end() -> None:
    bounded, has_run = jobs(), threading.Event()
    bounded.close(has_run.set)
    assert await asyncio.to_thread(has_run.wait, 10)
