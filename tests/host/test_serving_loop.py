import asyncio
import threading
from typing import NoReturn

import pytest

from gateway.host.serving_loop import ServingLoop


async def test_function_that_another_thread_passes_is_called_on_the_loop() -> None:
    loop, called = ServingLoop(), asyncio.Event()
    threads: list[int] = []

    def call(first: str, second: str) -> None:
        threads.append(threading.get_ident())
        assert (first, second) == ("one", "two")
        called.set()

    loop.bind()
    await asyncio.to_thread(loop.call_soon, call, "one", "two")
    await asyncio.wait_for(called.wait(), 5)
    assert threads == [threading.get_ident()]


def test_nothing_is_called_before_the_loop_is_known_or_after_it_is_closed() -> None:
    loop = ServingLoop()
    loop.call_soon(pytest.fail)

    async def bind() -> None:
        loop.bind()

    asyncio.run(bind())
    loop.call_soon(pytest.fail)


async def test_background_task_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    loop, failed = ServingLoop(), asyncio.Event()

    async def fail() -> NoReturn:
        failed.set()
        raise ValueError("from the task")

    loop.start_task(fail())
    await asyncio.wait_for(failed.wait(), 5)
    await asyncio.sleep(0)
    assert "A background task failed" in caplog.text
    assert "from the task" in caplog.text


async def test_background_tasks_can_be_cancelled_without_a_complaint(caplog: pytest.LogCaptureFixture) -> None:
    loop, started, cancelled = ServingLoop(), asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    loop.start_task(wait())
    await asyncio.wait_for(started.wait(), 5)
    loop.cancel_tasks()
    await asyncio.wait_for(cancelled.wait(), 5)
    assert not caplog.records
