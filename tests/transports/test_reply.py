from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gateway.http.responses import PIECE_BYTES
from gateway.transports import reply as reply_module
from gateway.transports.event_stream import COMMENT, EventStream
from gateway.transports.reply import Answer, Reply
from tests.support.asgi_client import AsgiClient, HesitantClient


class Streams:
    """Counts the streams that are open."""

    def __init__(self) -> None:
        self.opened = 0
        self.open = 0
        self.was_opened = asyncio.Event()

    @contextmanager
    def counted(self) -> Iterator[None]:
        self.opened += 1
        self.open += 1
        self.was_opened.set()
        try:
            yield
        finally:
            self.open -= 1


def new_reply(client: AsgiClient) -> Reply:
    stream = EventStream(client.send, buffer_bytes=1000, slow_reader_seconds=5)
    return Reply(lambda: stream, client.send, ((b"mcp-session-id", b"abc"),))


def start(reply: Reply, client: AsgiClient, streams: Streams, silence_seconds: float = 60) -> asyncio.Task[bool]:
    return asyncio.create_task(reply.run(client.receive, silence_seconds=silence_seconds, counted=streams.counted))


async def done(task: asyncio.Task[bool]) -> bool:
    async with asyncio.timeout(5):
        return await task


@pytest.mark.parametrize("is_early", [True, False])
async def test_answer_is_one_whole_response(is_early: bool) -> None:
    client, streams = AsgiClient(), Streams()
    reply = new_reply(client)
    if is_early:
        reply.answer(Answer(b"{}", 202, headers=((b"retry-after", b"1"),)))
    running = start(reply, client, streams)
    if not is_early:
        await asyncio.to_thread(reply.answer, Answer(b"{}", 202, headers=((b"retry-after", b"1"),)))
    assert await done(running) is True
    assert (client.status, client.body, client.is_ended) == (202, b"{}", True)
    assert (client.headers["content-type"], client.headers["content-length"]) == ("application/json", "2")
    assert (client.headers["mcp-session-id"], client.headers["retry-after"]) == ("abc", "1")
    assert streams.opened == 0


async def test_stream_is_opened_by_the_first_event_and_counted_while_open() -> None:
    client, streams = AsgiClient(), Streams()
    reply = new_reply(client)
    running = start(reply, client, streams)

    def write() -> None:
        reply.stream.write(b"one")
        reply.open_stream()

    await asyncio.to_thread(write)
    await client.has(b"one")
    assert (client.status, client.headers["mcp-session-id"], streams.open) == (200, "abc", 1)
    assert reply.answer(Answer(b"{}")) is False
    reply.stream.write(b"two")
    reply.stream.close()
    assert await done(running) is True
    assert (client.body, client.is_ended, streams.open) == (b"onetwo", True, 0)


async def test_first_decision_stands_whoever_comes_second() -> None:
    def answer(reply: Reply, both: threading.Barrier) -> bool:
        both.wait()
        return reply.answer(Answer(b"{}"))

    def open_stream(reply: Reply, both: threading.Barrier) -> None:
        both.wait()
        reply.open_stream()
        reply.stream.close()

    for _ in range(50):
        client, both = AsgiClient(), threading.Barrier(2)
        reply = new_reply(client)
        running = start(reply, client, Streams())
        is_answer, _ = await asyncio.gather(
            asyncio.to_thread(answer, reply, both), asyncio.to_thread(open_stream, reply, both)
        )
        assert await done(running) is True
        assert is_answer is not reply.is_stream
        assert client.body == (b"" if reply.is_stream else b"{}")


async def test_second_answer_changes_nothing() -> None:
    client = AsgiClient()
    reply = new_reply(client)
    assert [reply.answer(Answer(b"1")), reply.answer(Answer(b"2"))] == [True, True]
    reply.open_stream()
    assert not reply.is_stream
    assert await done(start(reply, client, Streams())) is True
    assert client.body == b"1"


async def test_answer_that_takes_long_is_streamed_so_that_comments_can_be_sent() -> None:
    client, streams, told = AsgiClient(), Streams(), []
    reply = new_reply(client)
    reply.on_silence = lambda: told.append(reply.is_stream)
    running = start(reply, client, streams, silence_seconds=0.02)
    async with asyncio.timeout(5):
        await streams.was_opened.wait()
    assert told == [True]
    reply.stream.comment_if_silent(reply.stream.last_sent + 100, 60)
    await client.has(COMMENT)
    reply.stream.close()
    assert await done(running) is True


async def test_client_that_leaves_before_the_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_module, "WATCH_AFTER_SECONDS", 0.01)
    client, streams = AsgiClient(), Streams()
    reply = new_reply(client)
    running = start(reply, client, streams)
    await asyncio.sleep(0.05)
    before = asyncio.all_tasks()
    client.left.set()
    assert await done(running) is False
    assert (reply.stream.is_closed, client.sent, streams.opened) == (True, [], 0)
    assert not asyncio.all_tasks() - before


async def test_client_that_leaves_or_does_not_read_its_stream_did_not_get_the_answer() -> None:
    for leaves in (True, False):
        client = AsgiClient()
        reply = new_reply(client)
        running = start(reply, client, Streams())
        reply.open_stream()
        reply.stream.write(b"x" * 2000)
        await client.has(b"x" * 2000)
        if leaves:
            client.left.set()
        else:
            client.reads.clear()
            reply.stream.write(b"x" * 2000)
            await asyncio.sleep(0)
            now = reply.stream.last_sent
            reply.stream.give_up_if_slow(now)
            reply.stream.give_up_if_slow(now + 6)
        assert await done(running) is False


async def test_answer_for_a_host_whose_loop_is_closed_is_dropped() -> None:
    replies: list[Any] = []

    async def make() -> None:
        replies.append(new_reply(AsgiClient()))

    await asyncio.to_thread(asyncio.run, make())
    assert replies[0].answer(Answer(b"{}")) is True
    replies[0].open_stream()


async def test_large_answer_goes_out_in_pieces_with_its_length() -> None:
    client = AsgiClient()
    reply = new_reply(client)
    body = bytes(range(256)) * 1000
    reply.answer(Answer(body))
    assert await done(start(reply, client, Streams())) is True
    assert (client.body, client.headers["content-length"], client.is_ended) == (body, str(len(body)), True)
    assert max(len(message.get("body", b"")) for message in client.sent) == PIECE_BYTES


async def test_client_that_does_not_take_a_large_answer_in_time_gets_no_end() -> None:
    client = HesitantClient()
    reply = Reply(lambda: EventStream(client.send, buffer_bytes=1, slow_reader_seconds=1), client.send, step_seconds=0)
    reply.answer(Answer(b"x" * 10 * PIECE_BYTES))
    assert await done(start(reply, client, Streams())) is False
    assert not client.is_ended
