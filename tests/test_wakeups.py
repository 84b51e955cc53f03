from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextvars import ContextVar

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
    async with asyncio.timeout(within(5)):
        await asyncio.wrap_future(lane.submit(asyncio.sleep(0)))


async def test_wake_ups_of_one_turn_go_together_and_in_order(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []
    passed_on: list[int] = []
    pass_on = Wakeups._pass_on
    monkeypatch.setattr(Wakeups, "_pass_on", lambda self, all_: passed_on.append(len(all_)) or pass_on(self, all_))
    for _ in range(2):
        for number in range(3):
            lane.wakeups.send(lambda number=number: woken.append(number))
        await asyncio.sleep(0)
    await turn_of(lane)
    assert passed_on == [3, 3]
    assert woken == [0, 1, 2, 0, 1, 2]


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
