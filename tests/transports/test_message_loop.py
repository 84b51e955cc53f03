from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp_types import JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from gateway.jsonrpc import ANSWERS, parse_message
from gateway.transports.link import Link
from gateway.transports.message_loop import MessageLoop
from tests.support.lane_server import SCOPE, LaneServer, new_budget, new_memory, new_session
from tests.support.processes import until
from tests.support.streamable import META, STATELESS, initialize_message

INITIALIZED = JSONRPCNotification(jsonrpc="2.0", method="notifications/initialized")


class Session:
    """One session's loop and what it wrote."""

    def __init__(self, workshop: LaneServer, *, takes_stateless: bool = True) -> None:
        self.written: list[Any] = []
        self.ends = 0
        self.budget = new_budget()
        self.link = Link(new_session(), workshop.lane, 100)
        self.loop = MessageLoop(
            workshop,  # type: ignore[arg-type]
            self.link,
            self._write,
            self._answer,
            on_end=self._note_end,
            takes_stateless=takes_stateless,
        )

    async def _write(self, item: Any) -> None:
        self.written.append(item.message)
        if isinstance(item.message, ANSWERS):
            result = item.message.result if isinstance(item.message, JSONRPCResponse) else None
            self.link.settle(item.message.id, result, 0)

    def _answer(self, request_id: Any, result: dict[str, Any] | None, data: bytes) -> None:
        self.written.append(parse_message(data))
        self.link.settle(request_id, result, 0)

    def _note_end(self) -> None:
        self.ends += 1

    def send(self, message: Any) -> None:
        with new_memory(self.budget) as memory:
            self.link.admit(message, SCOPE, memory)

    def call(self, request_id: Any, tool: str, meta: Any = None, **arguments: Any) -> None:
        params = {"name": tool, "arguments": arguments, **({"_meta": meta} if meta else {})}
        self.send(JSONRPCRequest(jsonrpc="2.0", id=request_id, method="tools/call", params=params))

    def initialize(self) -> None:
        self.send(JSONRPCRequest(**initialize_message()))
        self.send(INITIALIZED)

    async def answer(self, request_id: Any) -> Any:
        def find() -> Any:
            return [message for message in self.written if getattr(message, "id", None) == request_id]

        return (await wait(find))[0]


async def wait(condition: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(until, condition)


@asynccontextmanager
async def opened(workshop: LaneServer, **options: Any) -> AsyncIterator[Session]:
    session = Session(workshop, **options)
    session.loop.start()
    yield session
    session.loop.stop()
    await wait(lambda: session.ends == 2)
    assert (session.budget.held_bytes, session.link.session.in_flight) == (0, {})


@pytest.mark.parametrize("takes_stateless", [True, False])
async def test_handshake_and_calls_are_answered(workshop: LaneServer, takes_stateless: bool) -> None:
    async with opened(workshop, takes_stateless=takes_stateless) as session:
        session.initialize()
        session.call(1, "echo", text="hello")
        assert (await session.answer("init")).result["serverInfo"]["name"] == "workshop"
        assert (await session.answer(1)).result["content"][0]["text"] == "hello"
        assert session.link.is_initialized
        assert session.budget.held_bytes == 0


async def test_client_that_does_not_start_with_a_handshake_may_be_stateless(workshop: LaneServer) -> None:
    meta = {f"{META}protocolVersion": STATELESS, f"{META}clientCapabilities": {}}
    async with opened(workshop) as session:
        session.call(1, "echo", meta, text="modern")
        assert (await session.answer(1)).result["content"][0]["text"] == "modern"
    async with opened(workshop, takes_stateless=False) as session:
        session.call(1, "echo", meta, text="modern")
        assert (await session.answer(1)).error.code == -32602


async def test_stop_cancels_handlers_and_gives_back_what_they_hold(workshop: LaneServer) -> None:
    async with opened(workshop) as session:
        session.initialize()
        session.call(1, "wait", name="one")
        await wait(lambda: "one" in workshop.called)
        assert session.budget.held_bytes == 10
    assert workshop.cancelled == ["one"]


async def test_loop_that_is_stopped_before_it_starts_serves_nothing(workshop: LaneServer) -> None:
    session = Session(workshop)
    session.loop.stop()
    session.loop.start()
    session.initialize()
    session.call(1, "echo", name="never")
    await wait(lambda: session.ends == 1)
    await wait(lambda: session.budget.held_bytes == 0)
    assert (workshop.called, session.written) == ([], [])


async def test_sessions_of_one_lane_do_not_end_with_each_other(workshop: LaneServer) -> None:
    async with opened(workshop) as other:
        other.initialize()
        async with opened(workshop) as session:
            session.initialize()
            session.call(1, "wait", name="one")
            await wait(lambda: "one" in workshop.called)
        other.call(1, "echo", text="alive")
        assert (await other.answer(1)).result["content"][0]["text"] == "alive"


async def test_loop_that_fails_ends_its_session_only_and_says_so(
    workshop: LaneServer, caplog: pytest.LogCaptureFixture
) -> None:
    session = Session(workshop)
    session.loop._write = None  # type: ignore[assignment]
    with caplog.at_level(logging.ERROR, "gateway"):
        session.loop.start()
        session.initialize()
        await wait(lambda: session.ends == 1)
    assert "message loop of a session of workshop failed" in caplog.text
    assert session.budget.held_bytes == 0
    async with opened(workshop) as other:
        other.initialize()
        await other.answer("init")


async def test_answer_that_cannot_be_sent_ends_its_session(
    workshop: LaneServer, caplog: pytest.LogCaptureFixture
) -> None:
    session = Session(workshop)

    def answer(request_id: Any, result: dict[str, Any] | None, data: bytes) -> None:
        raise ValueError("not writable")

    session.loop._answer = answer
    session.loop.start()
    session.initialize()
    await session.answer("init")
    session.call(1, "echo", text="lost")
    await wait(lambda: session.ends == 1)
    assert "An answer could not be sent" in caplog.text
    assert (session.budget.held_bytes, session.link.session.in_flight) == (0, {})
