"""Waiting for one future for a limited time, and the alarms that limit it."""

from __future__ import annotations

import asyncio

import pytest

from gateway.waiting import Alarms, wait_for
from tests.support.deadlines import within


async def test_waiting_ends_with_the_future_and_leaves_its_result_alone() -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()
    loop.call_soon(future.set_exception, ValueError("the result"))
    async with asyncio.timeout(10):
        await wait_for(future, None, Alarms())
        await wait_for(future, 100, Alarms())
    assert isinstance(future.exception(), ValueError)


@pytest.mark.parametrize("seconds", [0.001, 0, -1])
async def test_waiting_ends_with_its_time_and_cancels_nothing(seconds: float) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(10):
        await wait_for(future, seconds, Alarms())
    assert not future.done()


async def test_caller_that_is_cancelled_leaves_the_future_running() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(wait_for(future, 100, Alarms()))
    await asyncio.sleep(0)
    waiting.cancel()
    assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
    assert not future.done()
    future.set_result(None)


async def test_alarms_ring_in_the_order_in_which_they_are_due() -> None:
    alarms, rung, last = Alarms(), [], asyncio.Event()
    alarms.set(0.06, last.set)
    for seconds in (0.04, 0.02, 0.03):
        alarms.set(seconds, lambda seconds=seconds: rung.append(seconds))  # type: ignore[misc]
    async with asyncio.timeout(within(5)):
        await last.wait()
    assert rung == [0.02, 0.03, 0.04]


async def test_alarm_that_is_cancelled_does_not_ring_even_at_the_last_moment() -> None:
    alarms, rung, last = Alarms(), [], asyncio.Event()
    alarms.cancel(alarms.set(0.01, lambda: rung.append("cancelled")))
    first = alarms.set(0.02, lambda: (rung.append("first"), alarms.cancel(second)))
    second = alarms.set(0.02, lambda: rung.append("second"))
    alarms.set(0.03, last.set)
    async with asyncio.timeout(within(5)):
        await last.wait()
    alarms.cancel(first)  # it has rung
    assert rung == ["first"]


async def test_all_alarms_together_have_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, made = asyncio.get_running_loop(), []
    call_at = loop.call_at
    monkeypatch.setattr(loop, "call_at", lambda *given, **more: made.append(1) or call_at(*given, **more))
    alarms = Alarms()
    for _ in range(100):
        alarms.cancel(alarms.set(60, lambda: None))
    assert len(made) == 1


async def test_alarm_that_is_set_by_another_one_rings() -> None:
    alarms, rung = Alarms(), asyncio.Event()
    alarms.set(0.01, lambda: alarms.set(0.01, rung.set))
    async with asyncio.timeout(within(5)):
        await rung.wait()
