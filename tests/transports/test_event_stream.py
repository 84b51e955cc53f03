import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.exceptions import StreamClosed
from gateway.transports import event_stream
from gateway.transports.event_stream import BATCH_BYTES, COMMENT, EventStream, frame
from tests.support.asgi_client import AsgiClient, HesitantClient
from tests.support.lane_server import new_budget, new_memory
from tests.support.processes import until
from tests.support.threads import InThreads


@asynccontextmanager
async def running(client: AsgiClient, **options: Any) -> AsyncIterator[EventStream]:
    stream = EventStream(client.send, **{"buffer_bytes": 1000, "slow_reader_seconds": 5.0, **options})
    await stream.start()
    task = asyncio.create_task(stream.run(client.receive))
    try:
        yield stream
        stream.close()
        async with asyncio.timeout(5):
            await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_frame_is_one_event() -> None:
    assert frame(b"message", b"{}") == b"event: message\r\ndata: {}\r\n\r\n"
    assert frame(b"message", b"{}", b"1-2") == b"id: 1-2\r\nevent: message\r\ndata: {}\r\n\r\n"


async def test_what_is_written_is_sent_in_order_and_the_stream_ended() -> None:
    client = AsgiClient()
    async with running(client) as stream:
        for number in range(100):
            stream.write(b"%d," % number)
    assert client.sent[0]["status"] == 200
    assert client.body == b"".join(b"%d," % number for number in range(100))
    assert client.is_ended


async def test_what_another_thread_writes_is_sent_whole() -> None:
    client = AsgiClient()
    async with running(client, buffer_bytes=10**9) as stream:
        writers = [threading.Thread(target=lambda: [stream.write(b"0123456789") for _ in range(500)]) for _ in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            await asyncio.to_thread(writer.join)
        await client.has(b"0123456789" * 2000)


async def test_what_is_written_after_the_end_is_dropped() -> None:
    client = AsgiClient()
    async with running(client) as stream:
        stream.write(b"before")
        stream.close()
        stream.write(b"after")
        stream.close()
    assert client.body == b"before"


async def test_client_that_leaves_ends_the_stream_at_once() -> None:
    client = AsgiClient()
    stream = EventStream(client.send, buffer_bytes=1000, slow_reader_seconds=5)
    await stream.start()
    client.left.set()
    async with asyncio.timeout(1):
        await stream.run(client.receive)
    assert stream.is_closed
    assert not client.is_ended


async def test_silent_stream_gets_a_comment_and_a_busy_one_does_not() -> None:
    client = AsgiClient()
    async with running(client) as stream:
        stream.comment_if_silent(time.monotonic(), 60)
        assert client.body == b""
        stream.comment_if_silent(time.monotonic() + 61, 60)
        await client.has(COMMENT)


async def test_writer_waits_for_a_client_that_is_behind_and_goes_on_when_it_reads() -> None:
    client = AsgiClient()
    async with running(client) as stream:
        client.reads.clear()
        stream.write(b"x" * 2000)
        assert stream.is_full
        waiting = asyncio.create_task(stream.wait_for_room())
        await asyncio.sleep(0)
        assert not waiting.done()
        client.reads.set()
        async with asyncio.timeout(5):
            await waiting
        assert not stream.is_full
        assert not stream.was_slow


async def test_client_that_never_reads_is_given_up_and_the_writer_told() -> None:
    client = AsgiClient()
    stream = EventStream(client.send, buffer_bytes=10, slow_reader_seconds=5)
    await stream.start()
    client.reads.clear()
    task = asyncio.create_task(stream.run(client.receive))
    stream.write(b"x" * 100)
    waiting = asyncio.create_task(stream.wait_for_room())
    await asyncio.sleep(0)
    now = time.monotonic()
    stream.give_up_if_slow(now)
    stream.give_up_if_slow(now + 4.9)
    assert not stream.is_closed
    stream.give_up_if_slow(now + 5)
    async with asyncio.timeout(5):
        with pytest.raises(StreamClosed):
            await waiting
        assert stream.was_slow
        await task
    assert not client.is_ended


@pytest.mark.parametrize("is_closed", [False, True])
async def test_client_that_takes_as_much_as_may_wait_in_the_time_is_not_slow(is_closed: bool) -> None:
    client = HesitantClient()
    async with running(client, buffer_bytes=BATCH_BYTES) as stream:
        stream.write(b"x" * 4 * BATCH_BYTES)
        if is_closed:
            stream.close()
        now = time.monotonic()
        for pieces in range(1, 5):
            stream.give_up_if_slow(now + 4 * pieces)
            client.turns.release()
            await client.has(b"x" * pieces * BATCH_BYTES)
        client.turns.release()
    assert client.is_ended
    assert not stream.was_slow


async def test_closed_stream_whose_client_does_not_even_take_the_end_is_given_up() -> None:
    client = AsgiClient()
    async with running(client) as stream:
        client.reads.clear()
        stream.close()
        await asyncio.sleep(0)
        now = time.monotonic()
        stream.give_up_if_slow(now)
        stream.give_up_if_slow(now + 5)
    assert stream.was_slow
    assert not client.is_ended


async def test_client_that_takes_its_time_gets_what_was_written_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "CUT_SECONDS", 0.01)
    client = AsgiClient()
    async with running(client) as stream:
        client.reads.clear()
        stream.write(b"x" * 2000)
        stream.close()
        await asyncio.sleep(0.1)
        assert not stream.is_flushed
        client.reads.set()
    assert client.body == b"x" * 2000
    assert client.is_ended
    assert stream.is_flushed
    assert not stream.was_slow
    assert not stream.was_left


@pytest.mark.parametrize("is_closed", [False, True])
async def test_stream_that_is_cut_waits_for_no_client(monkeypatch: pytest.MonkeyPatch, is_closed: bool) -> None:
    monkeypatch.setattr(event_stream, "CUT_SECONDS", 0.01)
    client = AsgiClient()
    async with running(client, slow_reader_seconds=60) as stream:
        client.reads.clear()
        stream.write(b"x" * 2000)
        if is_closed:
            stream.close()
        stream.cut()
    assert not client.is_ended
    assert stream.was_slow


async def test_writer_that_waits_is_told_when_the_client_leaves() -> None:
    client = AsgiClient()
    async with running(client) as stream:
        client.reads.clear()
        stream.write(b"x" * 2000)
        waiting = asyncio.create_task(stream.wait_for_room())
        await asyncio.sleep(0)
        client.left.set()
        async with asyncio.timeout(5):
            with pytest.raises(StreamClosed):
                await waiting


async def test_writers_that_wait_can_be_woken_by_several_threads_at_once(in_threads_at_once: InThreads) -> None:
    stopped_lane = asyncio.new_event_loop()
    stopped_lane.close()
    waiter = stopped_lane, asyncio.Event()
    stream = EventStream(AsgiClient().send, buffer_bytes=1000, slow_reader_seconds=5)

    def wait_and_wake() -> None:
        stream._room_waiters.extend([waiter] * 3)
        stream._wake_writers()

    assert not in_threads_at_once(wait_and_wake)


async def test_failing_send_ends_the_stream_and_leaves_no_task() -> None:
    client = AsgiClient()
    stream = EventStream(client.send, buffer_bytes=10, slow_reader_seconds=5)
    await stream.start()

    async def fail(message: Any) -> None:
        raise OSError("the connection is gone")

    stream._send = fail
    before = asyncio.all_tasks()
    stream.write(b"x")
    with pytest.raises(OSError, match="gone"):
        await stream.run(client.receive)
    assert stream.is_closed
    assert asyncio.all_tasks() == before


async def test_memory_is_held_until_its_chunk_was_sent() -> None:
    client, budget = AsgiClient(), new_budget()
    async with running(client) as stream:
        client.reads.clear()
        with new_memory(budget) as memory:
            stream.write(b"large", memory=memory)
        assert budget.held_bytes == 10
        client.reads.set()
        await client.has(b"large")
        await asyncio.to_thread(until, lambda: budget.held_bytes == 0)


async def test_memory_is_released_when_its_client_leaves_or_the_stream_never_runs() -> None:
    client, budget = AsgiClient(), new_budget()
    client.reads.clear()
    for runs in (True, False):
        stream = EventStream(client.send, buffer_bytes=1000, slow_reader_seconds=5)
        with new_memory(budget) as memory:
            stream.write(b"large", memory=memory)
        assert budget.held_bytes == 10
        client.left.set()
        if runs:
            async with asyncio.timeout(5):
                await stream.run(client.receive)
        else:
            stream.abandon()
        assert budget.held_bytes == 0
        with new_memory(budget) as memory:
            stream.write(b"too late", memory=memory)
        assert budget.held_bytes == 0
