"""How blocked lanes and stuck calls are noticed. Over the wire: `e2e/test_calls`."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from gateway import metrics
from gateway.host import lane_watch
from gateway.host.lane_watch import LaneWatch
from gateway.instances.calls import ServerCalls
from gateway.instances.lanes import Lane, Lanes
from gateway.instances.listings import Listings
from gateway.instances.policies import Policies
from tests.support.processes import until


class Watched:
    """A server's lane that can be blocked, and the watch over it."""

    def __init__(self) -> None:
        self.lanes = Lanes()
        self.calls = [ServerCalls("watched", Listings(), Policies())]
        instances: Any = self  # of which it reads the calls
        self.watch = LaneWatch(self.lanes, instances)
        self.lane: Lane = self.lanes.get("watched")
        self.release = threading.Event()

    def block(self) -> None:
        """Block the lane in a call, until `release`."""
        is_blocked = threading.Event()

        async def call() -> None:
            with self.calls[0].noting("the call"):
                is_blocked.set()
                self.release.wait(10)

        self.lane.submit(call())
        assert is_blocked.wait(5)

    def blocks_counted(self) -> float:
        return metrics.lane_blocks.labels("watched", "the call")._value.get()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(lane_watch, "BLOCKED_SECONDS", 0.01)
    watched = Watched()
    yield watched
    watched.release.set()
    watched.lanes.stop()


def test_lane_that_answers_is_fine(watched: Watched) -> None:
    assert watched.watch.look() == {}
    until(lambda: not watched.lane.blocked_seconds)
    assert watched.watch.look() == {}
    until(lambda: not watched.watch.blocked_servers)


def test_blocked_lane_is_reported_once_and_for_as_long_as_it_is_blocked(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    before = watched.blocks_counted()
    watched.block()
    watched.watch.look()
    until(lambda: watched.watch.blocked_servers == ["watched"])
    for _ in range(3):
        assert watched.watch.look() == {"watched": "Blocked for 0 s by the call"}
    assert watched.blocks_counted() == before + 1
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("Server watched: the call blocks its event loop")
    watched.release.set()
    until(lambda: watched.watch.look() == {} and not watched.watch.blocked_servers)
    watched.release.clear()
    watched.block()
    until(lambda: "watched" in watched.watch.look())
    assert watched.blocks_counted() == before + 2


def test_stuck_calls_are_told_beside_what_blocks_the_lane(watched: Watched) -> None:
    stuck: Any = asyncio.Event()  # anything that counts
    watched.calls[0].given_up.add(stuck)
    told = "1 calls are stuck: they were given up and have not returned"
    assert watched.watch.look() == {"watched": told}
    watched.block()
    until(lambda: watched.watch.look() == {"watched": f"Blocked for 0 s by the call; {told}"})


def test_lane_of_a_server_that_has_had_no_instance_is_left_out(watched: Watched) -> None:
    watched.calls.clear()
    watched.lane.post(watched.release.wait, 10)
    watched.watch.look()
    until(lambda: watched.watch.blocked_servers == ["watched"])
    assert watched.watch.look() == {}
