"""How many threads may compute at once, and which of them do."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from gateway.compat.cpu_watch import ComputingBound, CpuUse, own_cpu_clock
from tests.support.processes import until

LOOK_SECONDS = 0.005


class Working:
    """A thread that computes, or sleeps, until it is told to end."""

    def __init__(self, *, computes: bool) -> None:
        self.use = CpuUse()
        self.clock: int | None = None
        self._is_over = threading.Event()
        self._has_begun = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(computes,), daemon=True)
        self._thread.start()
        assert self._has_begun.wait(5)

    def _run(self, computes: bool) -> None:
        self.clock = own_cpu_clock()
        self._has_begun.set()
        if not computes:
            self._is_over.wait()
        while not self._is_over.is_set():
            sum(range(500))

    def end(self) -> None:
        self._is_over.set()
        self._thread.join(5)


@pytest.fixture
def computing() -> Iterator[Working]:
    working = Working(computes=True)
    yield working
    working.end()


@pytest.fixture
def sleeping() -> Iterator[Working]:
    working = Working(computes=False)
    yield working
    working.end()


@pytest.fixture
def bound() -> ComputingBound:
    return ComputingBound(2, LOOK_SECONDS)


def look_until(bound: ComputingBound, threads: list[Working], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(LOOK_SECONDS)
        bound.look([(thread.clock, thread.use) for thread in threads])


def test_thread_that_computes_is_told_from_one_that_sleeps(
    bound: ComputingBound, computing: Working, sleeping: Working
) -> None:
    threads = [computing, sleeping]
    look_until(bound, threads, lambda: (computing.use.is_computing, sleeping.use.is_computing) == (True, False))
    sleeping.use.restart()
    assert sleeping.use.is_computing is None
    look_until(bound, threads, lambda: sleeping.use.is_computing is False)


def test_clock_of_a_thread_that_has_ended_or_not_started_tells_nothing(bound: ComputingBound) -> None:
    ended = Working(computes=False)
    ended.end()
    assert ended.clock is not None
    with pytest.raises(OSError):  # not at once: a thread goes on for a moment after it was joined
        until(lambda: not time.clock_gettime(ended.clock))
    other = CpuUse()
    for _ in range(3):
        bound.look([(ended.clock, ended.use), (None, other)])
    assert ended.use.is_computing is None
    assert other.is_computing is None


def test_calls_that_compute_leave_no_room_for_more_than_the_limit(bound: ComputingBound) -> None:
    assert bound.has_room([CpuUse()])
    assert not bound.has_room([CpuUse(), CpuUse()])
    assert bound.has_room([CpuUse(is_computing=True), *[CpuUse(is_computing=False)] * 30])
    assert not bound.has_room([CpuUse(is_computing=True)] * 2)


def test_calls_that_wait_make_room_for_unknown_ones_and_calls_that_compute_take_it_back(bound: ComputingBound) -> None:
    for _ in range(3):
        bound.note_end(CpuUse(), cpu_seconds=0.0005, seconds=0.02)
    assert bound.has_room([CpuUse()] * 8)
    assert not bound.has_room([CpuUse()] * 9)
    assert not bound.has_room([CpuUse(is_computing=True)] * 2)
    bound.note_end(CpuUse(), cpu_seconds=0.02, seconds=0.05)
    assert not bound.has_room([CpuUse()] * 2)


def test_call_that_uses_little_of_its_time_counts_as_waiting(bound: ComputingBound) -> None:
    """An HTTP request costs a few milliseconds of CPU time, too."""
    use = CpuUse()
    bound.note_end(use, cpu_seconds=0.004, seconds=0.1)
    assert use.is_computing is False


def test_calls_that_wait_make_little_room_beside_calls_that_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("gateway.compat.cpu_watch.time.monotonic", lambda: now)
    bound = ComputingBound(2, LOOK_SECONDS)

    def room() -> int:
        """How many calls may begin at once."""
        return next(count for count in range(100) if not bound.has_room([CpuUse() for _ in range(count)]))

    def end(*, computed: bool, times: int = 1) -> None:
        for _ in range(times):
            bound.note_end(CpuUse(), 0.5 if computed else 0.0, 0.5)

    end(computed=False, times=4)
    assert room() == 2 + 15
    end(computed=True)
    assert room() == 2
    end(computed=False, times=10)
    assert room() == 2 + 1
    now += 11
    end(computed=False, times=4)
    assert room() > 2 + 15
