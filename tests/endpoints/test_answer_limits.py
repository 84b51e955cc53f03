"""What servers' answers may hold while their clients do not read them; in process."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.test import override_settings
from prometheus_client import REGISTRY

from gateway import jsonrpc
from gateway.jsonrpc import BATCH_VERSION, json_body
from gateway.transports import stateless
from gateway.transports.message_budget import WITHHELD, MessageBudget
from gateway.transports.reply import Reply
from tests.support.in_process import Exchange, InProcessHost, held, host_in_process, until
from tests.support.processes import PLAIN_SERVERS, ROOT
from tests.support.wire import tool_call

WORKSHOP = "/workshop/ada:key"
LEDGER = "/ledger/ada:key"
ERAS = ROOT / "tests" / "servers" / "eras"

LARGE = 1_000_000
LIMIT = 4_000_000
CALLS = 10
ROOM = 3
"""How many large answers fit in the part of the limit that is not reserved."""


def limit(host: InProcessHost) -> None:
    """Let the messages of an address hold 4 MB."""
    budget = MessageBudget(host_bytes=6_000_000, address_bytes=LIMIT, key_bytes=2_000_000)
    host.host.message_budget = host.host.message_reader._budget = budget


@pytest.fixture
async def host() -> AsyncIterator[InProcessHost]:
    async with host_in_process(PLAIN_SERVERS) as host:
        limit(host)
        yield host


@pytest.fixture
async def ledger() -> AsyncIterator[InProcessHost]:
    async with host_in_process(ERAS) as host:
        limit(host)
        yield host


def withheld(server: str) -> float:
    return REGISTRY.get_sample_value("gumcp_withheld_messages_total", {"server": server}) or 0.0


def fill(number: Any, characters: int = LARGE) -> Any:
    return tool_call(number, "fill", characters=characters)


async def unread(host: InProcessHost, start: Any) -> list[Exchange]:
    """Make calls with large answers, one after the other, and read none of them."""
    exchanges = []
    before = withheld("workshop")
    for number in range(CALLS):
        exchange: Exchange = start(number)
        exchange.may_read.clear()
        exchanges.append(exchange)
    await until(lambda: withheld("workshop") - before == CALLS - ROOM)
    return exchanges


@pytest.mark.parametrize("era", ["handshake", "stateless"])
async def test_answers_that_are_not_read_hold_no_more_than_their_address_may(host: InProcessHost, era: str) -> None:
    if era == "handshake":
        client = await host.initialize(WORKSHOP)
        exchanges = await unread(host, lambda number: client.post(fill(number)))
    else:
        params = {"name": "fill", "arguments": {"characters": LARGE}}
        exchanges = await unread(host, lambda number: host.post_stateless(WORKSHOP, "tools/call", params))
    assert LARGE < held(host) <= LIMIT
    for exchange in exchanges:
        exchange.may_read.set()
    replies = [(await exchange.reply()).json for exchange in exchanges]
    whole = [reply for reply in replies if "result" in reply]
    assert len(whole) == ROOM
    assert {len(reply["result"]["content"][0]["text"]) for reply in whole} == {LARGE}
    assert {reply["error"]["message"] for reply in replies if "error" in reply} == {WITHHELD}
    await until(lambda: held(host) == 0)


async def test_answers_to_a_batch_hold_no_more_than_their_address_may(host: InProcessHost) -> None:
    client = await host.initialize(WORKSHOP, BATCH_VERSION)
    answers = (await client.post([fill(number) for number in range(CALLS)]).reply()).json
    assert [answer["error"]["message"] for answer in answers if "error" in answer] == [WITHHELD] * (CALLS - ROOM)
    assert len(answers) == CALLS
    await until(lambda: held(host) == 0)


async def test_answer_that_is_withheld_is_not_written_as_json_first(
    host: InProcessHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold up everything else in the process."""
    written: list[int] = []

    def note(value: Any) -> bytes:
        data = json_body(value)
        written.append(len(data))
        return data

    for module in (jsonrpc, stateless):
        monkeypatch.setattr(module, "json_body", note)
    client = await host.initialize(WORKSHOP)
    params = {"name": "fill", "arguments": {"characters": LARGE}}
    before = withheld("workshop")
    for number in range(CALLS):
        client.post(fill(number)).may_read.clear()
        host.post_stateless(WORKSHOP, "tools/call", params).may_read.clear()
    await until(lambda: withheld("workshop") - before == 2 * CALLS - ROOM)
    assert len([size for size in written if size > LARGE]) == ROOM
    for exchange in host.exchanges:
        exchange.may_read.set()


async def test_answers_on_a_stream_that_is_not_read_hold_no_more_than_their_address_may(host: InProcessHost) -> None:
    async with await host.open_sse(WORKSHOP) as sse:
        await sse.initialize()
        sse.stream.may_read.clear()
        # The stream takes no more calls once it is full, so that they come together.
        before = withheld("workshop")
        gate = tool_call("gate", "block", seconds=0.2)
        posts = [sse.post(message) for message in (gate, *map(fill, range(CALLS)))]
        assert {(await post.reply()).status for post in posts} == {202}
        await until(lambda: withheld("workshop") - before > 0 or held(host) > LIMIT)
        assert LARGE < held(host) <= LIMIT
        sse.stream.may_read.set()
        answers = [await sse.stream.message() for _ in posts]
    assert any(answer.get("error", {}).get("message") == WITHHELD for answer in answers)
    await until(lambda: held(host) == 0)


@pytest.mark.parametrize("characters", [LARGE, 2 * LIMIT])
async def test_one_large_answer_passes(host: InProcessHost, characters: int) -> None:
    client = await host.initialize(WORKSHOP)
    reply = await client.post(fill(1, characters)).reply()
    assert len(reply.json["result"]["content"][0]["text"]) == characters
    async with await host.open_sse(WORKSHOP) as sse:
        await sse.initialize()
        assert len(await sse.call("fill", characters=characters)) == characters
    await until(lambda: held(host) == 0)


async def test_answer_whose_client_has_left_holds_nothing(host: InProcessHost) -> None:
    async with await host.open_sse(WORKSHOP) as sse:
        await sse.initialize()
        sse.stream.may_read.clear()
        await sse.post(fill(1)).reply()
        await until(lambda: held(host) > LARGE)
    await until(lambda: held(host) == 0)
    client = await host.initialize(WORKSHOP)
    exchange = client.post(fill(1))
    exchange.may_read.clear()
    await until(lambda: held(host) > LARGE)
    exchange.task.cancel()
    await until(lambda: held(host) == 0)


@pytest.mark.parametrize("is_read", [True, False])
async def test_event_that_is_kept_until_a_client_comes_counts_until_then(ledger: InProcessHost, is_read: bool) -> None:
    client = await ledger.initialize(LEDGER)
    await client.call("announce", text="x" * LARGE)
    assert held(ledger) > LARGE
    if is_read:
        standalone = client.get()
        assert len((await standalone.message())["params"]["data"]) > LARGE
    else:
        await client.delete()
    await until(lambda: held(ledger) == 0)


async def test_events_that_are_asked_for_again_and_again_hold_no_more_than_their_address_may(
    ledger: InProcessHost,
) -> None:
    client = await ledger.initialize(LEDGER)
    primed = client.get()
    first = await primed.event()
    primed.leave()
    await primed.task
    await client.call("announce", text="x" * LARGE)
    streams = []
    for _ in range(CALLS):
        stream = client.get(first.id)
        stream.may_read.clear()
        streams.append(stream)
    await until(lambda: held(ledger) > ROOM * LARGE)
    # What came before has been through the lane, too.
    assert await client.call("echo", text="x") == "x"
    assert LARGE < held(ledger) <= LIMIT
    for stream in streams:
        stream.may_read.set()
    statuses = [await stream.status() for stream in streams]
    assert 1 <= statuses.count(200) <= ROOM
    assert statuses.count(429) == CALLS - statuses.count(200)


async def test_notifications_that_are_not_read_hold_no_more_than_their_address_may(ledger: InProcessHost) -> None:
    client = await ledger.initialize(LEDGER)
    before = withheld("ledger")
    calls = []
    for number in range(CALLS):
        call = client.start("chatter", number, times=1, characters=LARGE)
        call.may_read.clear()
        calls.append(call)
    await until(lambda: withheld("ledger") > before)
    assert LARGE < held(ledger) <= LIMIT
    for call in calls:
        call.leave()
        call.may_read.set()
    await until(lambda: held(ledger) == 0)


async def test_answer_is_freed_when_it_was_read_without_a_collection_of_garbage(host: InProcessHost) -> None:
    client = await host.initialize(WORKSHOP)
    gc.collect()
    gc.disable()
    try:
        for era in ("handshake", "stateless"):
            params = {"name": "fill", "arguments": {"characters": LARGE}}
            stateless = era == "stateless"
            exchange = host.post_stateless(WORKSHOP, "tools/call", params) if stateless else client.post(fill(1))
            assert len((await exchange.reply()).body) > LARGE
        # Not isinstance, which evaluates Django's lazy objects.
        await until(lambda: not any(type(found) is Reply for found in gc.get_objects()))
    finally:
        gc.enable()


async def test_large_response_ends_without_its_end_if_its_client_does_not_read() -> None:
    with override_settings(GUMCP_SLOW_READER_SECONDS=0.1):
        async with host_in_process(PLAIN_SERVERS) as host:
            client = await host.initialize(WORKSHOP)
            exchange = client.post(fill(1))
            exchange.may_read.clear()
            async with asyncio.timeout(10):
                await exchange.task
            assert not exchange.is_ended
            await until(lambda: held(host) == 0)
