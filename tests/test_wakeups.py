from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar
from typing import Any

import pytest

from gateway.instances.lanes import Lane
from gateway.wakeups import Wakeups
from tests.support.deadlines import within

caller: ContextVar[str] = ContextVar("caller", default="")


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("woken")
    yield lane
    lane.stop()


async def turn_of(lane: Lane) -> None:
    """Wait until the lane has done what it was told until now."""
    async with asyncio.timeout(within(10)):
        await asyncio.wrap_future(lane.submit(asyncio.sleep(0)))


class CountingLoop:
    """Counts how often another loop is woken."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.count = 0

    def call_soon_threadsafe(self, callback: Callable[[], object], context: Context) -> None:
        """Wake the other loop."""
        self.count += 1
        self._loop.call_soon_threadsafe(callback, context=context)

    def is_closed(self) -> bool:
        """It is open."""
        return False


async def test_loop_is_woken_once_until_it_runs_and_keeps_the_order() -> None:
    woken: list[int] = []
    loop: Any = CountingLoop(asyncio.get_running_loop())
    wakeups = Wakeups(loop)
    for turn in range(2):
        for number in range(3):
            wakeups.send(lambda number=number: woken.append(number))
        await asyncio.sleep(0)
        assert loop.count == turn + 1
    assert woken == [0, 1, 2, 0, 1, 2]


async def test_what_a_blocked_loop_has_sent_arrives_while_it_is_blocked(lane: Lane) -> None:
    """An answer does not wait for a handler that blocks the lane in the same turn."""
    here = Wakeups(asyncio.get_running_loop())
    arrived, came_meanwhile = threading.Event(), False

    def block() -> None:
        nonlocal came_meanwhile
        came_meanwhile = arrived.wait(within(5))

    def answer_and_block() -> None:
        lane.loop.call_soon(block)
        here.send(arrived.set)

    lane.wakeups.send(answer_and_block)
    await turn_of(lane)
    await turn_of(lane)
    assert came_meanwhile


async def test_wake_up_that_fails_keeps_up_no_other_one(lane: Lane, caplog: pytest.LogCaptureFixture) -> None:
    woken: list[str] = []
    lane.wakeups.send(lambda: 1 / 0)
    lane.wakeups.send(lambda: woken.append("the next"))
    await asyncio.sleep(0)
    await turn_of(lane)
    assert woken == ["the next"]
    assert "A wake-up failed" in caplog.text


async def test_wake_up_sees_no_context_variable_of_a_caller(lane: Lane) -> None:
    seen: list[str] = []
    caller.set("ada")
    lane.wakeups.send(lambda: seen.append(caller.get()))
    await asyncio.sleep(0)
    await turn_of(lane)
    assert seen == [""]


async def test_thread_without_a_loop_and_the_loop_itself_can_send(lane: Lane) -> None:
    woken = asyncio.Event()
    wakeups = Wakeups(asyncio.get_running_loop())
    threading.Thread(target=wakeups.send, args=(woken.set,)).start()
    async with asyncio.timeout(within(5)):
        await woken.wait()
    woken.clear()
    wakeups.send(woken.set)
    async with asyncio.timeout(within(5)):
        await woken.wait()


async def test_wake_up_of_a_closed_loop_is_dropped(lane: Lane) -> None:
    lane.stop()
    lane.wakeups.send(lambda: None)
    await asyncio.sleep(0)
    await asyncio.to_thread(lane.wakeups.send, lambda: None)
    assert not lane.wakeups._waiting
