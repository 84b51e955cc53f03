"""Which threads compute."""

import threading
import time
from collections.abc import Callable

from gateway.compat.cpu_watch import CpuUse, CpuWatch

LOOK_SECONDS = 0.005


def test_thread_that_computes_is_told_from_one_that_sleeps() -> None:
    is_over = threading.Event()

    def compute() -> None:
        while not is_over.is_set():
            sum(range(500))

    threads = [threading.Thread(target=target, daemon=True) for target in (compute, is_over.wait)]
    uses = [CpuUse(), CpuUse()]
    watch = CpuWatch(LOOK_SECONDS)
    for thread in threads:
        thread.start()
    try:
        assert [use.is_computing for use in uses] == [True, True], "not known yet"
        look_until(watch, threads, uses, lambda: [use.is_computing for use in uses] == [True, False])
        uses[1].restart()
        assert uses[1].is_computing
        look_until(watch, threads, uses, lambda: not uses[1].is_computing)
    finally:
        is_over.set()


def test_thread_that_has_not_started_or_has_ended_does_not_compute() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    uses = [CpuUse(), CpuUse()]
    CpuWatch(LOOK_SECONDS).look([(None, uses[0]), (0, uses[1])])
    assert not uses[0].is_computing


def look_until(
    watch: CpuWatch, threads: list[threading.Thread], uses: list[CpuUse], condition: Callable[[], bool]
) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(LOOK_SECONDS)
        watch.look((thread.ident, use) for thread, use in zip(threads, uses, strict=True))
