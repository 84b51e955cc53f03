"""Batches, which sessions of 2025-03-26 may send, on both transports with sessions; in process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.test import override_settings

from gateway.access.authenticator import Authenticator
from gateway.access.limits import RateLimits
from tests.support.in_process import HandshakeClient, InProcessHost, SseClient, host_in_process
from tests.support.key_rows import Rows
from tests.support.processes import ROOT
from tests.support.streamable import initialize_message
from tests.support.wire import request, tool_call

LEDGER = "/ledger/ada:key"
WITH_BATCHES = "2025-03-26"
NOTIFICATION = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}


@pytest.fixture
async def host() -> AsyncIterator[InProcessHost]:
    async with host_in_process(ROOT / "tests" / "servers" / "eras") as host:
        yield host


@pytest.fixture
async def client(host: InProcessHost) -> HandshakeClient:
    return await host.initialize(LEDGER, WITH_BATCHES)


@pytest.fixture
async def sse(host: InProcessHost) -> AsyncIterator[SseClient]:
    async with await host.open_sse(LEDGER) as client:
        await client.initialize(WITH_BATCHES)
        yield client


def answers(messages: list[Any]) -> dict[Any, Any]:
    """Request id -> result, or the code of the error."""
    assert all(message["jsonrpc"] == "2.0" for message in messages)
    return {message["id"]: message.get("result", message.get("error", {}).get("code")) for message in messages}


def text_of(result: Any) -> str:
    return str(result["content"][0]["text"])


async def settled(host: InProcessHost) -> None:
    """Wait until no message holds memory any more."""
    async with asyncio.timeout(5):
        while host.host.message_budget.held_bytes:  # noqa: ASYNC110 (another thread changes it)
            await asyncio.sleep(0.005)


async def test_requests_of_a_batch_are_answered_as_one_json_array(client: HandshakeClient, host: InProcessHost) -> None:
    reply = await client.post([request("ping", None, 1), NOTIFICATION, tool_call("two", "echo", text="x")]).reply()
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.headers["mcp-session-id"] == client.id
    found = answers(reply.json)
    assert (found[1], text_of(found["two"])) == ({}, "x")
    await settled(host)


async def test_batch_of_one_request_is_answered_as_an_array(client: HandshakeClient) -> None:
    assert answers((await client.post([request("ping", None, 1)]).reply()).json) == {1: {}}


async def test_batch_without_requests_is_202(client: HandshakeClient, host: InProcessHost) -> None:
    for batch in ([NOTIFICATION, NOTIFICATION], [{"jsonrpc": "2.0", "id": 7, "result": {}}]):
        reply = await client.post(batch).reply()
        assert (reply.status, reply.body) == (202, b"")
    assert await client.call("echo", text="alive") == "alive"
    await settled(host)


async def test_batch_becomes_a_stream_as_soon_as_one_handler_notifies(client: HandshakeClient) -> None:
    quick, slow = request("ping", None, 1), tool_call(2, "hold", name="batch")
    exchange = client.post([quick, slow])
    seen = [await exchange.message(), await exchange.message()]
    await client.call("release", name="batch")
    seen.append(await exchange.message())
    reply = await exchange.reply()
    assert reply.headers["content-type"].startswith("text/event-stream")
    notifications = [message["params"]["data"] for message in seen if "method" in message]
    found = answers([message for message in seen if "method" not in message])
    assert (notifications, found[1], text_of(found[2])) == (["holding"], {}, "held batch")


@override_settings(GUMCP_PING_SECONDS=0.2)
async def test_silent_batch_becomes_a_stream_with_the_answers_so_far(client: HandshakeClient) -> None:
    exchange = client.post([request("ping", None, 1), tool_call(2, "hold", name="silent", quiet=True)])
    assert answers([await exchange.message()]) == {1: {}}
    await client.call("release", name="silent")
    assert text_of((await exchange.message())["result"]) == "held silent"
    await exchange.reply()


@pytest.mark.parametrize("number", [1, 20])
async def test_lost_stream_of_a_batch_is_resumed(client: HandshakeClient, number: int) -> None:
    pings = [request("ping", None, f"ping{index}") for index in range(number)]
    exchange = client.post([tool_call("slow", "hold", name="lost"), *pings])
    event = await exchange.event()
    exchange.leave()
    await exchange.task
    await client.call("release", name="lost")
    resumed = client.get(event.id)
    found = answers([message for _ in range(number + 1) if "id" in (message := await resumed.message())])
    assert text_of(found["slow"]) == "held lost"
    await resumed.reply()


async def test_each_message_of_a_batch_is_checked_by_itself(client: HandshakeClient, host: InProcessHost) -> None:
    batch = [
        1,
        {"jsonrpc": "2.0", "id": 1.5, "method": "ping"},
        {"jsonrpc": "1.0", "id": 3, "method": "ping"},
        [request("ping", None, 4)],
        initialize_message(request_id="five"),
        request("ping", None, 6),
        request("ping", None, 6),
        request("no/such", None, 7),
    ]
    reply = await client.post(batch).reply()
    assert reply.status == 200
    refused = [message["error"]["code"] for message in reply.json if message["id"] is None]
    assert refused == [-32600] * 4
    named = [message for message in reply.json if message["id"] is not None]
    assert sorted(str(message["id"]) for message in named) == ["6", "6", "7", "five"]
    assert answers([message for message in named if message["id"] in ("five", 7)]) == {"five": -32600, 7: -32601}
    await settled(host)


@pytest.mark.parametrize(("batch", "status"), [([], 400), ([request("ping", None, 1)] * 101, 413)])
async def test_empty_batch_and_one_that_is_too_long_are_refused(
    client: HandshakeClient, sse: SseClient, batch: list[Any], status: int
) -> None:
    for exchange in (client.post(batch), sse.post(batch)):
        assert (await exchange.reply()).status == status
    assert await client.call("echo", text="alive") == "alive"


@pytest.mark.parametrize("version", ["2024-11-05", "2025-06-18", "2025-11-25"])
async def test_sessions_of_other_versions_have_no_batches(host: InProcessHost, version: str) -> None:
    client = await host.initialize(LEDGER, version)
    async with await host.open_sse(LEDGER) as sse:
        assert (await sse.post([request("ping", None, 1)]).reply()).status == 400
        await sse.initialize(version)
        for exchange in (client.post([request("ping", None, 1)]), sse.post([request("ping", None, 1)])):
            reply = await exchange.reply()
            assert reply.status == 400
            assert "2025-03-26" in reply.body.decode()


async def test_requests_of_a_batch_are_answered_on_the_sse_stream(sse: SseClient, host: InProcessHost) -> None:
    batch = [request("ping", None, 1), NOTIFICATION, 5, tool_call(2, "echo", text="x"), request("ping", None, 1)]
    reply = await sse.post(batch).reply()
    assert (reply.status, reply.body) == (202, b"Accepted")
    seen = [await sse.stream.message() for _ in range(4)]
    assert sorted(str(message["id"]) for message in seen) == ["1", "1", "2", "None"]
    assert text_of(answers(seen)[2]) == "x"
    await settled(host)


async def test_session_that_ends_answers_every_request_of_a_batch(client: HandshakeClient, host: InProcessHost) -> None:
    calls = [tool_call(number, "hold", name=str(number), quiet=True) for number in range(3)]
    exchange = client.post([*calls, request("ping", None, "ping")])
    async with asyncio.timeout(5):
        while await client.call("count", of="held 2") != "1":
            pass
    await client.delete()
    reply = await exchange.reply()
    assert answers(reply.json) == {0: -32000, 1: -32000, 2: -32000, "ping": {}}
    await settled(host)


async def test_cancelled_request_of_a_batch_leaves_the_others_alone(client: HandshakeClient) -> None:
    exchange = client.post([tool_call(number, "hold", name=f"c{number}", quiet=True) for number in (1, 2)])
    async with asyncio.timeout(5):
        while await client.call("count", of="held c2") != "1":
            pass
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    await client.post([cancel]).reply()
    await client.call("release", name="c2")
    found = answers((await exchange.reply()).json)
    assert (found[1], text_of(found[2])) == (-32800, "held c2")


@override_settings(GUMCP_AUTH="keys")
async def test_each_message_of_a_batch_counts_as_a_request_of_its_key() -> None:
    async with host_in_process(ROOT / "tests" / "servers" / "eras") as host:
        rows = Rows()
        limits = RateLimits({"requests of a key": "50/minute"})
        host.host.doorkeeper.authenticator = Authenticator("keys", rows, limits)
        client = await host.initialize(f"/ledger/ada:{rows.issue('ada').text}", WITH_BATCHES)
        statuses = [(await client.post([request("ping", None, n) for n in range(20)]).reply()).status for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
