from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from mcp.shared.message import ServerMessageMetadata
from mcp_types import JSONRPCNotification, JSONRPCRequest

from gateway.exceptions import DuplicateRequestId, RepeatedInitialize, SessionBacklogFull, StreamClosed, TooManyRequests
from gateway.instances.lanes import Lane
from gateway.transports.link import Link
from tests.support.lane_server import SCOPE, new_budget, new_memory, new_session


def call(request_id: Any, method: str = "ping", **params: Any) -> JSONRPCRequest:
    return JSONRPCRequest(jsonrpc="2.0", id=request_id, method=method, params=params or None)


INITIALIZE = call("init", "initialize", protocolVersion="2025-11-25", clientInfo={"name": "c", "version": "1"})
NOTIFICATION = JSONRPCNotification(jsonrpc="2.0", method="notifications/initialized")


def new_link(lane: Lane, max_backlog: int = 100, wait_for_room: Callable[[], Any] | None = None) -> Link:
    return Link(new_session(), lane, max_backlog, wait_for_room)


async def in_lane(lane: Lane, function: Callable[[], Any]) -> Any:
    async def run() -> Any:
        return function()

    return await lane.run(run())


async def test_messages_reach_the_lane_in_order_with_their_request(lane: Lane) -> None:
    link = new_link(lane)

    async def take(count: int) -> list[Any]:
        return [await link.inbound.receive() for _ in range(count)]

    taking = asyncio.ensure_future(lane.run(take(20)))
    for number in range(20):
        link.admit(call(number), SCOPE, new_memory())
    taken = await asyncio.wait_for(taking, 5)
    assert [item.message.id for item in taken] == list(range(20))
    assert taken[0].metadata.request_context.url.path == SCOPE["path"]
    assert (link.session.messages_in, len(link.session.in_flight)) == (20, 20)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (1, "1"), ("a", "a")])
async def test_id_in_flight_is_refused_until_it_is_answered(lane: Lane, first: Any, second: Any) -> None:
    link = new_link(lane)
    link.admit(call(first), SCOPE, new_memory())
    with pytest.raises(DuplicateRequestId) as refusal:
        link.admit(call(second), SCOPE, new_memory())
    assert refusal.value.request_id == second
    await in_lane(lane, lambda: link.settle(first, {}, 0))
    link.admit(call(second), SCOPE, new_memory())


async def test_initialize_is_taken_once(lane: Lane) -> None:
    link = new_link(lane)
    link.admit(INITIALIZE, SCOPE, new_memory())
    with pytest.raises(RepeatedInitialize):
        link.admit(INITIALIZE.model_copy(update={"id": "again"}), SCOPE, new_memory())
    assert (link.is_initialized, link.session.client_name) == (False, "c")
    await in_lane(lane, lambda: link.settle("init", {"protocolVersion": "2025-06-18"}, 0))
    assert (link.is_initialized, link.session.protocol_version) == (True, "2025-06-18")
    with pytest.raises(RepeatedInitialize):
        link.admit(INITIALIZE.model_copy(update={"id": "later"}), SCOPE, new_memory())


async def test_requests_and_other_messages_have_bounds_of_their_own(lane: Lane) -> None:
    link = new_link(lane, max_backlog=3)
    for number in range(3):
        link.admit(call(number), SCOPE, new_memory())
    with pytest.raises(SessionBacklogFull):
        link.admit(call(3), SCOPE, new_memory())
    assert len(link.inbound) == 3
    with pytest.raises(SessionBacklogFull):
        link.admit(NOTIFICATION, SCOPE, new_memory())
    await lane.run(link.inbound.receive())
    link.admit(NOTIFICATION, SCOPE, new_memory())


async def test_refused_request_leaves_no_trace(lane: Lane) -> None:
    link, admitted = new_link(lane), []
    memory = new_memory()
    memory.refusal = TooManyRequests("Full.", 1)
    with pytest.raises(TooManyRequests):
        link.admit(call(1), SCOPE, memory, on_admitted=lambda: admitted.append(1))
    assert (memory.holders, len(link.inbound), len(link.session.in_flight), admitted) == (1, 0, 0, [])
    link.admit(NOTIFICATION, SCOPE, memory)  # an answer of the client would be taken
    assert memory.holders == 2


async def test_request_holds_its_memory_until_the_answer_and_a_notification_until_it_is_taken(lane: Lane) -> None:
    link, budget = new_link(lane), new_budget()
    for message in (call(1), NOTIFICATION):
        with new_memory(budget) as memory:
            link.admit(message, SCOPE, memory)
    assert budget.held_bytes == 20
    for _ in range(2):
        await lane.run(link.inbound.receive())
    assert budget.held_bytes == 10
    await in_lane(lane, lambda: link.settle(1, {}, 0))
    assert budget.held_bytes == 0


async def test_closed_link_holds_nothing_and_takes_nothing(lane: Lane) -> None:
    link, budget = new_link(lane), new_budget()

    def admit() -> None:
        for message in (call(1), NOTIFICATION):
            with new_memory(budget) as memory:
                link.admit(message, SCOPE, memory)

    admit()
    await in_lane(lane, link.close)
    assert (budget.held_bytes, len(link.inbound), link.session.in_flight) == (0, 0, {})
    admit()
    assert (budget.held_bytes, len(link.inbound), link.session.in_flight) == (0, 0, {})


async def test_cancelled_request_is_settled_and_its_transport_told(lane: Lane) -> None:
    link, told = new_link(lane), []

    async def end_on_wire() -> None:
        told.append(link.session.in_flight.copy())

    memory = new_memory()
    link.admit(call(1), SCOPE, memory, ServerMessageMetadata(on_request_unanswered=end_on_wire))
    item = await lane.run(link.inbound.receive())
    await lane.run(item.metadata.on_request_unanswered())
    assert (told, memory.holders) == ([{}], 1)


async def test_next_message_waits_until_the_client_has_read(lane: Lane) -> None:
    may_go = asyncio.Event()

    async def wait_for_room() -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(may_go.wait(), host_loop))

    host_loop = asyncio.get_running_loop()
    link = new_link(lane, wait_for_room=wait_for_room)
    link.admit(call(1), SCOPE, new_memory())
    taking = asyncio.ensure_future(lane.run(link.inbound.receive()))
    await asyncio.sleep(0.02)
    assert not taking.done()
    may_go.set()
    assert (await asyncio.wait_for(taking, 5)).message.id == 1


async def test_stream_that_ended_ends_the_inbound_messages(lane: Lane) -> None:
    async def wait_for_room() -> None:
        raise StreamClosed

    link = new_link(lane, wait_for_room=wait_for_room)
    link.admit(call(1), SCOPE, new_memory())
    with pytest.raises(anyio.EndOfStream):
        await lane.run(link.inbound.receive())


async def test_reader_that_waits_is_told_of_the_end(lane: Lane) -> None:
    link = new_link(lane)

    async def take_all() -> list[Any]:
        return [item async for item in link.inbound]

    taking = asyncio.ensure_future(lane.run(take_all()))
    await asyncio.sleep(0.02)
    await lane.run(link.inbound.aclose())
    assert await asyncio.wait_for(taking, 5) == []


@pytest.mark.parametrize(("first", "expected"), [(INITIALIZE, True), (call(1), False), (NOTIFICATION, False)])
async def test_first_message_is_looked_at_and_left_in_place(lane: Lane, first: Any, expected: bool) -> None:
    link = new_link(lane)
    opening = asyncio.ensure_future(lane.run(link.opens_with_handshake()))
    link.admit(first, SCOPE, new_memory())
    assert await asyncio.wait_for(opening, 5) is expected
    assert (await lane.run(link.inbound.receive())).message is first
