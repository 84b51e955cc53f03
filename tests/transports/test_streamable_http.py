from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from mcp_types import JSONRPCNotification, JSONRPCRequest

from gateway.jsonrpc import batch_from
from gateway.transports.event_stream import EventStream
from gateway.transports.reply import Reply
from gateway.transports.streamable_http import StreamableHttpTransport
from tests.support.asgi_client import AsgiClient
from tests.support.lane_server import SCOPE, LaneServer, new_budget, new_memory, new_session
from tests.support.processes import until
from tests.support.streamable import initialize_message

KEPT_BYTES = 1000


class Exchange:
    """One request whose answer is on its way."""

    def __init__(self, stream: EventStream, client: AsgiClient, running: asyncio.Task[Any]) -> None:
        self.stream = stream
        self.client = client
        self._running = running

    async def messages(self, count: int) -> list[Any]:
        """The first messages of the stream."""
        await wait(lambda: len(self.client.messages) >= count)
        return self.client.messages

    async def end(self) -> None:
        async with asyncio.timeout(5):
            await self._running

    async def json(self) -> Any:
        """The answer, which is JSON."""
        await self.end()
        assert self.client.headers["content-type"] == "application/json"
        return json.loads(self.client.body)

    def leave(self) -> None:
        self.client.left.set()


async def wait(condition: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(until, condition)


class Session:
    """One session and its client."""

    def __init__(self, workshop: LaneServer) -> None:
        self.budget = new_budget()
        self.facts = new_session()
        self.transport = StreamableHttpTransport(
            workshop,  # type: ignore[arg-type]
            self.facts,
            max_backlog=100,
            max_events=20,
            max_event_bytes=KEPT_BYTES,
        )
        self.ends = 0
        self.transport.start(self._note_end)

    def _note_end(self) -> None:
        self.ends += 1

    def post(self, message: JSONRPCRequest) -> Exchange:
        client = AsgiClient()
        stream = EventStream(client.send, buffer_bytes=100_000, slow_reader_seconds=5)
        reply = Reply(lambda: stream, client.send)
        with new_memory(self.budget) as memory:
            self.transport.call(message, SCOPE, memory, reply)
        running = asyncio.create_task(reply.run(client.receive, silence_seconds=60, counted=nullcontext))
        return Exchange(stream, client, running)

    def call(self, request_id: Any, tool: str, **arguments: Any) -> Exchange:
        params = {"name": tool, "arguments": arguments}
        return self.post(JSONRPCRequest(jsonrpc="2.0", id=request_id, method="tools/call", params=params))

    async def initialize(self, version: str = "2025-11-25") -> None:
        assert "result" in await self.post(JSONRPCRequest(**initialize_message(version))).json()
        with new_memory(self.budget) as memory:
            message = JSONRPCNotification(jsonrpc="2.0", method="notifications/initialized")
            self.transport.deliver(message, SCOPE, memory)

    async def get(self, last_event_id: str | None = None) -> Exchange | None:
        """Open the standalone stream, or resume one; None if that is refused."""
        client = AsgiClient()
        stream = EventStream(client.send, buffer_bytes=100_000, slow_reader_seconds=5)
        if last_event_id is None:
            is_open = await self.transport.attach_standalone(stream)
        else:
            is_open = await self.transport.resume(stream, last_event_id)
        if not is_open:
            return None

        async def run() -> None:
            await stream.start()
            await stream.run(client.receive)

        return Exchange(stream, client, asyncio.create_task(run()))

    async def end(self) -> None:
        self.transport.stop()
        await wait(lambda: self.ends == 2)
        assert self.budget.held_bytes == 0


@pytest.fixture
async def session(workshop: LaneServer) -> Any:
    session = Session(workshop)
    await session.initialize()
    yield session
    workshop.open()
    await session.end()


def text_of(message: Any) -> str:
    return str(message["result"]["content"][0]["text"])


def told(message: Any) -> str:
    return str(message["params"]["data"])


def place_of(exchange: Exchange, index: int = 0) -> str:
    return exchange.client.events[index]["id"]


async def test_call_without_anything_before_its_result_is_answered_with_json(session: Session) -> None:
    assert text_of(await session.call(1, "echo", text="hello").json()) == "hello"
    assert session.transport.is_established
    assert session.transport.is_flushed


async def test_call_becomes_a_stream_as_soon_as_its_handler_notifies(session: Session, workshop: LaneServer) -> None:
    call = session.call(1, "tell", text="first", waits=True)
    assert told((await call.messages(1))[0]) == "first"
    workshop.open()
    await call.end()
    assert text_of(call.client.messages[1]) == "first"
    assert call.client.is_ended


async def test_messages_of_no_call_wait_for_the_standalone_stream(session: Session) -> None:
    for text in ("one", "two"):
        await session.call(text, "tell aside", text=text).json()
    standalone = await session.get()
    assert standalone is not None
    await session.call(3, "tell aside", text="three").json()
    assert list(map(told, await standalone.messages(3))) == ["one", "two", "three"]
    standalone.leave()
    await standalone.end()


async def test_second_standalone_stream_is_refused_until_the_first_has_ended(session: Session) -> None:
    first = await session.get()
    assert first is not None
    assert await session.get() is None
    first.leave()
    await first.end()
    second = await session.get()
    assert second is not None
    second.leave()
    await second.end()


async def test_lost_stream_is_resumed_with_what_was_missed(session: Session, workshop: LaneServer) -> None:
    call = session.call(1, "tell", text="first", waits=True)
    await call.messages(1)
    call.leave()
    await call.end()
    resumed = await session.get(place_of(call))
    assert resumed is not None
    workshop.open()
    await resumed.end()
    assert [told(resumed.client.messages[0]), text_of(resumed.client.messages[1])] == ["first", "first"]
    # Once more, after the call was answered.
    again = await session.get(place_of(call, 1))
    assert again is not None
    await again.end()
    assert list(map(text_of, again.client.messages)) == ["first"]
    assert await session.get("77-1") is None


async def test_stream_that_is_resumed_ends_the_one_it_replaces(session: Session, workshop: LaneServer) -> None:
    call = session.call(1, "tell", text="first", waits=True)
    await call.messages(1)
    resumed = await session.get(place_of(call))
    assert resumed is not None
    await call.end()
    workshop.open()
    await resumed.end()
    assert text_of(resumed.client.messages[-1]) == "first"


async def test_handler_may_close_its_stream_and_the_answer_waits_for_the_client(session: Session) -> None:
    call = session.call(1, "close stream", text="later")
    await call.end()
    assert call.client.messages == []
    resumed = await session.get(place_of(call))
    assert resumed is not None
    await resumed.end()
    assert list(map(text_of, resumed.client.messages)) == ["later"]


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18"])
async def test_older_client_gets_no_event_without_data(workshop: LaneServer, version: str) -> None:
    session = Session(workshop)
    await session.initialize(version)
    call = session.call(1, "tell", text="first")
    await call.end()
    assert all(event["data"] for event in call.client.events)
    await session.end()


async def test_large_event_is_not_kept_once_it_was_sent(session: Session) -> None:
    buffer = session.transport._buffer
    standalone = await session.get()
    assert standalone is not None
    await session.call(1, "tell aside", text="x" * 5 * KEPT_BYTES).json()
    await standalone.messages(1)
    await wait(lambda: buffer._bytes == 0)
    assert await session.get(place_of(standalone)) is None  # a gap would hide the loss
    standalone.leave()
    await standalone.end()


@pytest.mark.parametrize("version", ["2025-06-18", "2025-11-25"])
async def test_large_event_that_was_not_sent_is_kept_for_the_client_that_comes(
    workshop: LaneServer, version: str
) -> None:
    session = Session(workshop)
    await session.initialize(version)
    buffer = session.transport._buffer
    await session.call(1, "tell aside", text="x" * 5 * KEPT_BYTES).json()
    assert buffer._bytes > 5 * KEPT_BYTES
    standalone = await session.get()
    assert standalone is not None
    assert len(told((await standalone.messages(1))[0])) == 5 * KEPT_BYTES
    await wait(lambda: buffer._bytes == 0)
    await session.end()
    await standalone.end()


async def test_large_result_on_a_stream_is_not_kept_once_it_was_sent(session: Session) -> None:
    call = session.call(1, "tell", text="x" * 5 * KEPT_BYTES)
    await call.end()
    assert len(text_of(call.client.messages[-1])) == 5 * KEPT_BYTES
    await wait(lambda: session.transport._buffer._bytes == 0)
    assert session.transport._streams.keys() == {0}


async def test_cancelled_call_is_answered_so_that_its_response_ends(session: Session, workshop: LaneServer) -> None:
    call = session.call(1, "wait", name="one")
    await wait(lambda: "one" in workshop.called)
    with new_memory(session.budget) as memory:
        cancel = JSONRPCNotification(jsonrpc="2.0", method="notifications/cancelled", params={"requestId": 1})
        session.transport.deliver(cancel, SCOPE, memory)
    assert (await call.json())["error"]["code"] == -32800
    assert text_of(await session.call(1, "echo", text="free").json()) == "free"


async def test_end_answers_every_call(workshop: LaneServer) -> None:
    session = Session(workshop)
    await session.initialize()
    silent, streamed = session.call(1, "wait", name="silent"), session.call(2, "tell", text="first", waits=True)
    standalone = await session.get()
    assert standalone is not None
    await streamed.messages(1)
    await wait(lambda: "silent" in workshop.called)
    session.transport.stop()
    assert (await silent.json())["error"]["code"] == -32000
    await streamed.end()
    assert streamed.client.messages[-1]["error"]["code"] == -32000
    await standalone.end()
    await wait(lambda: session.ends == 2)
    assert (session.budget.held_bytes, session.transport._posts) == (0, {})


async def test_end_does_not_wait_for_a_lane_that_is_blocked(workshop: LaneServer) -> None:
    session = Session(workshop)
    await session.initialize()
    streamed = session.call(1, "tell", text="first", waits=True)
    await streamed.messages(1)
    blocked = session.call(2, "block", name="blocked")
    await wait(lambda: "blocked" in workshop.called)
    session.transport.stop()
    assert (await blocked.json())["error"]["code"] == -32000
    await streamed.end()
    workshop.open()
    await wait(lambda: session.ends == 2)
    assert session.budget.held_bytes == 0


async def test_batch_is_answered_when_all_of_it_is_even_if_its_first_answer_comes_early(workshop: LaneServer) -> None:
    session = Session(workshop)
    await session.initialize("2025-03-26")
    link = session.transport._link
    admit = link.admit

    def admit_slowly(*arguments: Any) -> None:
        admit(*arguments)
        workshop.lane.post(link.inbound._look)  # as if an earlier wake-up came only now
        until(lambda: not session.facts.in_flight)

    link.admit = admit_slowly  # type: ignore[method-assign]
    client = AsgiClient()
    stream = EventStream(client.send, buffer_bytes=1000, slow_reader_seconds=5)
    reply = Reply(lambda: stream, client.send)
    batch = batch_from([{"jsonrpc": "2.0", "id": number, "method": "ping"} for number in range(3)])
    with new_memory(session.budget) as memory:
        assert session.transport.call_batch(batch, SCOPE, memory, reply)
    running = asyncio.create_task(reply.run(client.receive, silence_seconds=60, counted=nullcontext))
    answers = await Exchange(reply.stream, client, running).json()
    assert [answer["id"] for answer in answers] == [0, 1, 2]
    await session.end()
