"""Waiting for one future for a limited time."""

from __future__ import annotations

import asyncio

import pytest

from gateway.waiting import wait_for


async def test_waiting_ends_with_the_future_and_leaves_its_result_alone() -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()
    loop.call_soon(future.set_exception, ValueError("the result"))
    async with asyncio.timeout(10):
        await wait_for(future, None)
        await wait_for(future, 100)
    assert isinstance(future.exception(), ValueError)


@pytest.mark.parametrize("seconds", [0.001, 0, -1])
async def test_waiting_ends_with_its_time_and_cancels_nothing(seconds: float) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(10):
        await wait_for(future, seconds)
    assert not future.done()


async def test_caller_that_is_cancelled_leaves_the_future_running() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(wait_for(future, 100))
    await asyncio.sleep(0)
    waiting.cancel()
    assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
    assert not future.done()
    future.set_result(None)
