"""What processes keep of streams in Redis: bounds, gaps, and what Redis can read of it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from gateway.transports.shared_events import ENDED, EVENT, OPENED, EventsUnavailable, SharedEvents
from tests.fleet.topology import program, running_redis
from tests.support.deadlines import WAIT_SECONDS

SESSION = "session-canary"


class Redis:
    """A Redis, and what makes processes that use it."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._url = f"redis://127.0.0.1:{port}/0"
        self._made: list[SharedEvents] = []

    def connect(self, *, max_events: int = 10, max_bytes: int = 10_000, root: str = "a") -> SharedEvents:
        made = SharedEvents(self._url, root, uuid4(), max_events=max_events, max_bytes=max_bytes)
        made.start()
        self._made.append(made)
        return made

    def close(self) -> None:
        for made in self._made:
            made.stop()


@pytest.fixture
def redis(processes: None, tmp_path: Path) -> Iterator[Redis]:
    if program("redis-server") is None:
        pytest.skip("NOT TESTED: events in Redis: apt-get install redis-server")
    with running_redis(tmp_path, "127.0.0.1") as (port, process):
        made = Redis(port, process)
        yield made
        made.close()


def say(events: SharedEvents, first: int, last: int, *, stream: int = 1, text: str = "canary") -> str:
    """Share events with these sequences; returns the name of their log."""
    log = events.log_name(SESSION, 1)
    for sequence in range(first, last + 1):
        events.add(log, stream, EVENT, sequence, b'{"method": "%b", "id": null}' % text.encode())
    return log


async def reached(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 - a thread brings it about
            await asyncio.sleep(0.005)


async def test_another_process_reads_what_followed_and_who_was_not_answered(redis: Redis) -> None:
    writer, reader = redis.connect(), redis.connect()
    log = writer.log_name(SESSION, 1)
    writer.add(log, 1, OPENED, 0, b'[7, "8"]')
    say(writer, 1, 3)
    say(writer, 4, 4, stream=2)
    writer.add(log, 1, EVENT, 5, b'{"id": 7, "result": {}}')
    await reached(lambda: len(writer._client.xrange(log)) == 6)
    found = await reader.read(log, 1, 2)
    assert found is not None
    assert [sequence for sequence, _ in found.events] == [3, 5]
    assert (found.unanswered, found.is_alive) == (["8"], True)
    writer.add(log, 1, ENDED, 5, b"")
    await reached(lambda: len(writer._client.xrange(log)) == 7)
    found = await reader.read(log, 1, 2)
    assert found is not None
    assert not found.is_alive


async def test_redis_can_read_nothing_and_forgets(redis: Redis) -> None:
    writer = redis.connect()
    log = say(writer, 1, 2)
    await reached(lambda: writer._client.exists(log))
    assert "canary" not in log
    assert b"canary" not in writer._client.dump(log)
    assert 0 < writer._client.ttl(log) <= 300
    with pytest.raises(EventsUnavailable):
        await redis.connect(root="b").read(log, 1, 1)


@pytest.mark.parametrize("bounds", [{"max_events": 3}, {"max_bytes": 100}])
async def test_log_is_bounded_and_nothing_is_resumed_over_what_was_dropped(
    redis: Redis, bounds: dict[str, int]
) -> None:
    writer = redis.connect(**bounds)
    log = say(writer, 1, 9)
    await reached(lambda: writer._client.exists(log) and not writer._waiting)
    await reached(lambda: len(writer._client.xrange(log)) == 3)
    assert await writer.read(log, 1, 1) is None
    found = await writer.read(log, 1, 7)
    assert found is not None
    assert [sequence for sequence, _ in found.events] == [8, 9]


async def test_event_that_is_too_large_to_be_kept_does_not_travel_and_leaves_no_gap(redis: Redis) -> None:
    writer, reader = redis.connect(max_bytes=1000), redis.connect()
    log = say(writer, 1, 2)
    await reached(lambda: writer._client.xlen(log) == 2)
    before = writer._client.info("stats")["total_net_input_bytes"]
    say(writer, 3, 3, text="x" * 100_000)
    await reached(lambda: not writer._client.exists(log))
    assert writer._client.info("stats")["total_net_input_bytes"] - before < 50_000
    assert await reader.read(log, 1, 2) is None
    say(writer, 4, 5)
    await reached(lambda: writer._client.xlen(log) == 2)
    found = await reader.read(log, 1, 4)
    assert found is not None
    assert [sequence for sequence, _ in found.events] == [5]


async def test_event_that_was_lost_leaves_no_gap(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.transports.shared_events.AWAY_SECONDS", 0.0)
    writer = redis.connect()
    log = say(writer, 1, 2)
    await reached(lambda: writer._client.exists(log))
    with monkeypatch.context() as broken:
        broken.setattr("gateway.transports.shared_events.MAX_WAITING_BYTES", -1)
        say(writer, 3, 3)
    say(writer, 4, 5)
    await reached(lambda: [entry for entry, _ in writer._client.xrange(log)] == [b"4-0", b"5-0"])
    assert await writer.read(log, 1, 2) is None


async def test_event_that_was_lost_behind_others_that_wait_leaves_no_gap(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = redis.connect()
    with monkeypatch.context() as slow:
        slow.setattr("gateway.transports.shared_events.GATHER_SECONDS", 0.3)
        slow.setattr("gateway.transports.shared_events.MAX_WAITING_BYTES", 300)
        log = say(writer, 1, 3)  # for two of these there is room
        await reached(lambda: len(writer._client.xrange(log)) == 2)
    say(writer, 4, 5)
    await reached(lambda: [entry for entry, _ in writer._client.xrange(log)] == [b"4-0", b"5-0"])
    assert await writer.read(log, 1, 2) is None


async def test_redis_that_is_away_costs_the_resumption_and_nothing_else(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    writer = redis.connect()
    redis.process.kill()
    redis.process.wait()
    log = say(writer, 1, 2)
    await reached(lambda: writer._outage.is_present)
    with pytest.raises(EventsUnavailable):
        await writer.read(log, 1, 1)
    assert "canary" not in caplog.text
