import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from gateway.instances.lanes import Lane, Lanes
from tests.support.deadlines import within


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("example")
    yield lane
    assert lane.stop()


def lane_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("lane-")}


async def thread_name() -> str:
    return threading.current_thread().name


async def test_work_runs_in_the_lanes_own_thread(lane: Lane) -> None:
    assert await lane.run(thread_name()) == "lane-example"
    assert await thread_name() != "lane-example"


async def test_exception_of_the_work_reaches_the_caller(lane: Lane) -> None:
    async def fail() -> None:
        raise ValueError("from the lane")

    with pytest.raises(ValueError, match="from the lane"):
        await lane.run(fail())


async def test_cancelling_the_caller_cancels_the_work(lane: Lane) -> None:
    started, cancelled = threading.Event(), threading.Event()

    async def wait() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    task = asyncio.create_task(lane.run(wait()))
    assert await asyncio.to_thread(started.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(cancelled.wait, 5)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_task_that_raises_out_of_the_loop_ends_neither_lane_nor_process(lane: Lane, error: BaseException) -> None:
    async def leave() -> None:
        raise error

    future = lane.submit(leave())
    with pytest.raises(type(error)):
        future.result(5)
    assert lane.submit(thread_name()).result(5) == "lane-example"


async def test_blocked_lane_blocks_no_other(lane: Lane) -> None:
    other, release = Lane("other"), threading.Event()
    lane.post(release.wait, 10)
    started = time.monotonic()
    assert await other.run(thread_name()) == "lane-other"
    assert time.monotonic() - started < within(1)
    release.set()
    assert other.stop()


def test_lag_is_that_of_a_blocked_loop_while_it_is_blocked(lane: Lane) -> None:
    release = threading.Event()
    lane.probe()
    lane.submit(thread_name()).result(5)
    assert lane.lag_seconds < 0.5
    lane.post(release.wait, 10)
    lane.probe()
    started = time.monotonic()
    while lane.lag_seconds < 0.1:
        assert time.monotonic() - started < within(5)
    release.set()


def test_stopped_lane_takes_no_more_work() -> None:
    lane = Lane("short")
    assert lane.stop()
    assert not lane.post(print)
    with pytest.raises(RuntimeError):
        lane.submit(thread_name())
    assert lane.stop()


def test_stopping_cancels_what_runs() -> None:
    lane, cancelled, started = Lane("busy"), threading.Event(), threading.Event()

    async def wait() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    lane.submit(wait())
    assert started.wait(5)
    assert lane.stop()
    assert cancelled.is_set()
    assert "lane-busy" not in lane_threads()


def test_blocked_lane_is_left_behind_in_bounded_time() -> None:
    lane, release = Lane("stuck"), threading.Event()
    lane.post(release.wait, 30)
    started = time.monotonic()
    assert not lane.stop(timeout_seconds=0.2)
    assert time.monotonic() - started < within(2)
    release.set()


def test_task_that_refuses_to_be_cancelled_does_not_hold_the_stop() -> None:
    lane, started = Lane("stubborn"), threading.Event()

    async def refuse() -> None:
        while True:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    lane.submit(refuse())
    assert started.wait(5)
    began = time.monotonic()
    lane.stop()
    assert time.monotonic() - began < within(5)


def test_lane_starts_when_it_is_first_asked_for_and_is_the_servers_own() -> None:
    lanes, threads = Lanes(), {"lane-one", "lane-two"}
    assert not list(lanes)
    one = lanes.get("one")
    assert lane_threads() & threads == {"lane-one"}
    assert lanes.get("one") is one
    assert lanes.get("two") is not one
    lanes.stop()
    assert not lane_threads() & threads


def test_lanes_asked_for_by_many_threads_at_once_start_once() -> None:
    lanes, barrier = Lanes(), threading.Barrier(16)
    got: list[Lane] = []

    def ask() -> None:
        barrier.wait(5)
        got.append(lanes.get("same"))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(got) == 16
    assert len(set(map(id, got))) == 1
    lanes.stop()


def test_all_lanes_stop_together_however_many_are_blocked() -> None:
    lanes, release = Lanes(), threading.Event()
    for number in range(8):
        lanes.get(f"blocked-{number}").post(release.wait, 30)
    started = time.monotonic()
    lanes.stop()
    assert time.monotonic() - started < within(4)
    release.set()
