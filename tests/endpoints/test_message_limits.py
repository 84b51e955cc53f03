"""What messages may hold: values, `initialize`, and the memory of messages that are not answered yet; in process."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.test import override_settings
from mcp_types import JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from gateway.access.authenticator import Authenticator
from gateway.access.limits import RateLimits
from gateway.transports.message_budget import MessageBudget
from gateway.transports.message_reader import SMALL_MESSAGE_BYTES
from tests.support.in_process import Exchange, InProcessHost, held, host_in_process, until
from tests.support.key_rows import Rows
from tests.support.processes import ROOT
from tests.support.streamable import META, STATELESS, initialize_message
from tests.support.wire import request, tool_call

LEDGER = "/ledger/ada:key"
KEPT = (JSONRPCRequest, JSONRPCNotification, JSONRPCResponse)
ERAS = ROOT / "tests" / "servers" / "eras"


@pytest.fixture
async def host() -> AsyncIterator[InProcessHost]:
    async with host_in_process(ERAS) as host:
        yield host


def padded_call(text: str, request_id: Any = 1) -> bytes:
    return json.dumps(tool_call(request_id, "echo", text="x", padding=text)).encode()


def call_with(inner: str, request_id: Any = 1) -> bytes:
    call = json.dumps(tool_call(request_id, "echo", text="x", inner="INNER"))
    return call.replace('"INNER"', inner).encode()


# -- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["[" + "{}," * 100_000 + "0]", '{"a":' * 100_001 + "0" + "}" * 100_001])
async def test_message_with_too_many_values_is_413_on_every_transport(host: InProcessHost, inner: str) -> None:
    client = await host.initialize(LEDGER)
    body = call_with(inner)
    stateless = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "echo"}
    async with await host.open_sse(LEDGER) as sse:
        for exchange in (client.post(body), host.post(LEDGER, body, stateless), sse.post(body)):
            reply = await exchange.reply()
            assert reply.status == 413
            assert "100000 JSON values" in reply.body.decode()
    assert await client.call("echo", text="alive") == "alive"
    await until(lambda: held(host) == 0)


async def test_text_full_of_commas_and_brackets_is_one_value(host: InProcessHost) -> None:
    client = await host.initialize(LEDGER)
    for text in (",[{:" * 200_000, '",' * 200_000, "\\" * 200_000):
        reply = await client.post(padded_call(text)).reply()
        assert reply.json["result"]["content"][0]["text"] == "x"


@pytest.mark.parametrize("body", [b'{"a": "' + b"x" * 100_000, b'{"jsonrpc": "2.0", "x": "' + b"x" * 100_000 + b'"}'])
async def test_large_body_that_is_not_a_message_is_400(host: InProcessHost, body: bytes) -> None:
    client = await host.initialize(LEDGER)
    assert (await client.post(body).reply()).status == 400
    await until(lambda: held(host) == 0)


async def test_client_that_leaves_while_its_body_is_decoded_holds_nothing(host: InProcessHost) -> None:
    client = await host.initialize(LEDGER)
    exchanges = [client.post(padded_call("x" * 1_000_000, number)) for number in range(5)]
    await until(lambda: host.host.message_budget.held_bytes > 2_000_000)
    for exchange in exchanges:
        exchange.task.cancel()
    await until(lambda: host.host.message_budget.held_bytes == 0)


# -- initialize ------------------------------------------------------------------------------------------------------


def initialize_with(inner: str) -> bytes:
    message = json.dumps(initialize_message(capabilities={"experimental": {"x": {"y": "INNER"}}}))
    return message.replace('"INNER"', inner).encode()


@pytest.mark.parametrize(
    "inner",
    ['"' + "x" * 65_536 + '"', "[" + "{}," * 2000 + "0]", "[" + "{}," * 1_300_000 + "0]"],
    ids=["too long", "too many values", "as in the issue"],
)
async def test_initialize_that_is_too_large_is_413_and_opens_nothing(host: InProcessHost, inner: str) -> None:
    body = initialize_with(inner)
    for headers in ({}, {"MCP-Protocol-Version": "2026-07-28"}):
        assert (await host.post(LEDGER, body, headers).reply()).status == 413
    assert (len(host.host.sessions), len(host.host.instances)) == (0, 0)
    async with await host.open_sse(LEDGER) as sse:
        assert (await sse.post(body).reply()).status == 413
        await sse.initialize()


@pytest.mark.parametrize(
    "unit",
    [
        pytest.param('{"a":' * 150 + "1" + "}" * 150, id="objects"),
        pytest.param("[" * 150 + "]" * 150, id="arrays"),
        pytest.param("{" + ",".join(f'"{number:x}":{{}}' for number in range(150)) + "}", id="names"),
        pytest.param(",".join(['"\u00e9\U0001f600"'] * 150), id="texts"),
    ],
)
async def test_session_keeps_less_than_a_mebibyte_whatever_its_client_declares(host: InProcessHost, unit: str) -> None:
    inner = ",".join([unit] * 13)
    # The rest is a text of which one character makes all others take four bytes.
    inner = f'[{inner},"{"x" * (65_000 - len(inner.encode()))}\U0001f600"]'
    await host.initialize(LEDGER)
    body = initialize_with(inner)
    gc.collect()
    tracemalloc.start()
    try:
        replies = [await host.post(LEDGER, body).reply() for _ in range(5)]
        host.exchanges.clear()
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] / 5
    finally:
        tracemalloc.stop()
    assert {reply.status for reply in replies} == {200}, replies[0]
    assert kept < 1024 * 1024, f"{kept / 1024:.0f} KiB"
    print(f"an initialize of {len(body)} bytes: {kept / 1024:.0f} KiB")


# -- Memory until answered -------------------------------------------------------------------------------------------


@pytest.fixture
async def small(host: InProcessHost) -> InProcessHost:
    """A host that lets the messages of an address hold 4 MB, and all messages 6 MB."""
    budget = MessageBudget(host_bytes=6_000_000, address_bytes=4_000_000, key_bytes=2_000_000)
    host.host.message_budget = host.host.message_reader._budget = budget
    return host


async def hold(client: Any, name: str, padding: int = 500_000, **options: Any) -> Exchange:
    """Start a call that is answered when `release` is called."""
    call = tool_call(f"hold {name}", "hold", name=name, quiet=True, padding="x" * padding)
    exchange: Exchange = client.post(call, **options)
    return exchange


async def test_memory_is_held_until_the_answer(small: InProcessHost) -> None:
    client = await small.initialize(LEDGER)
    call = await hold(client, "one")
    await until(lambda: held(small) > 1_000_000)
    assert await client.call("release", name="one") == "released"
    assert (await call.reply()).status == 200
    await until(lambda: held(small) == 0)


async def test_address_that_holds_too_much_is_429_and_others_are_served(small: InProcessHost) -> None:
    client = await small.initialize(LEDGER)
    calls = [await hold(client, str(number)) for number in range(3)]
    await until(lambda: held(small) > 3_000_000)
    refused = await (await hold(client, "refused")).reply()
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert "this address" in refused.json["error"]["message"]
    reply = await small.post_stateless(LEDGER, "tools/list", address="192.0.2.9").reply()
    assert reply.status == 200
    for number in range(3):
        await client.call("release", name=str(number))
    assert {(await call.reply()).status for call in calls} == {200}
    await until(lambda: held(small) == 0)
    assert await client.call("echo", text="again") == "again"


async def test_host_that_holds_too_much_is_503(small: InProcessHost) -> None:
    client = await small.initialize(LEDGER)
    for number in range(5):
        await hold(client, str(number), address=f"192.0.2.{number}")
    await until(lambda: held(small) > 5_000_000)
    refused = await (await hold(client, "refused", address="192.0.2.100")).reply()
    assert (refused.status, refused.headers["retry-after"]) == (503, "10")
    await client.delete()
    await until(lambda: held(small) == 0)


@override_settings(GUMCP_AUTH="keys")
async def test_key_that_holds_too_much_is_429_and_other_keys_are_served() -> None:
    async with host_in_process(ERAS) as host:
        rows = Rows()
        host.host.doorkeeper.authenticator = Authenticator("keys", rows, RateLimits({}))
        host.host.message_budget = host.host.message_reader._budget = MessageBudget(
            host_bytes=6_000_000, address_bytes=4_000_000, key_bytes=2_000_000
        )
        ada = await host.initialize(f"/ledger/ada:{rows.issue('ada').text}")
        bob = await host.initialize(f"/ledger/bob:{rows.issue('bob').text}")
        await hold(ada, "one")
        await until(lambda: held(host) > 1_000_000)
        refused = await (await hold(ada, "two", address="192.0.2.9")).reply()
        assert (refused.status, "this key" in refused.json["error"]["message"]) == (429, True)
        await hold(bob, "three")
        await until(lambda: held(host) > 2_000_000)


async def test_what_ends_a_call_without_an_answer_gives_its_memory_back(small: InProcessHost) -> None:
    client = await small.initialize(LEDGER)
    await hold(client, "cancelled")
    await until(lambda: held(small) > 1_000_000)
    # Its large body is decoded in a thread: a message that cancels it must not overtake it.
    async with asyncio.timeout(10):
        while await client.call("count", of="held cancelled") != "1":
            pass
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "hold cancelled"}}
    assert (await client.post(cancel).reply()).status == 202
    await until(lambda: held(small) == 0)
    await hold(client, "session that ends")
    await until(lambda: held(small) > 1_000_000)
    await client.delete()
    await until(lambda: held(small) == 0)
    async with await small.open_sse(LEDGER) as sse:
        await sse.initialize()
        assert (await (await hold(sse, "stream that ends")).reply()).status == 202
        await until(lambda: held(small) > 1_000_000)
    await until(lambda: held(small) == 0)


async def test_stateless_call_holds_memory_until_its_client_leaves(small: InProcessHost) -> None:
    params = {"name": "hold", "arguments": {"name": "left", "quiet": True, "padding": "x" * 500_000}}
    call = small.post_stateless(LEDGER, "tools/call", params)
    await until(lambda: held(small) > 1_000_000)
    await asyncio.sleep(1.1)  # a client that leaves is noticed from then on
    call.leave()
    await until(lambda: held(small) == 0)


async def test_refused_messages_hold_nothing(small: InProcessHost) -> None:
    client = await small.initialize(LEDGER)
    await until(lambda: held(small) == 0)
    first = await hold(client, "same")
    async with asyncio.timeout(10):
        while await client.call("count", of="held same") != "1":
            pass
    before = held(small)
    duplicate = await (await hold(client, "same")).reply()
    initialize = await client.post(initialize_message(request_id="again")).reply()
    gone = await small.post(LEDGER, padded_call("x" * 1000), {"Mcp-Session-Id": "0" * 32}).reply()
    assert (duplicate.status, initialize.status, gone.status) == (400, 400, 404)
    assert held(small) == before
    await client.call("release", name="same")
    await first.reply()
    await until(lambda: held(small) == 0)


async def test_session_that_ends_while_its_message_arrives_holds_nothing(small: InProcessHost) -> None:
    client = await small.initialize(LEDGER)
    late = small.open(
        "POST", LEDGER, None, {"Content-Type": "application/json", "Accept": "*/*", "Mcp-Session-Id": client.id}
    )
    await asyncio.sleep(0)
    await client.delete()
    late.send_body(padded_call("x" * 100_000))
    assert (await late.reply()).status == 404
    await until(lambda: held(small) == 0)


async def test_answer_to_the_servers_question_is_taken_while_calls_hold_all_that_requests_may(
    small: InProcessHost,
) -> None:
    client = await small.initialize(LEDGER)
    standalone = client.get()
    asking = client.post(tool_call("ask", "ask_aside", padding="x" * 10))
    question = await standalone.message()
    for number in range(3):
        await hold(client, str(number), padding=550_000)
    await until(lambda: held(small) > 3_300_000)
    refused = await (await hold(client, "refused", padding=100_000)).reply()
    assert refused.status == 429
    roots = [{"uri": "file:///" + "x" * 90_000}]
    answered = await client.post({"jsonrpc": "2.0", "id": question["id"], "result": {"roots": roots}}).reply()
    assert answered.status == 202
    assert len((await asking.reply()).json["result"]["content"][0]["text"]) > 90_000


async def test_body_that_arrives_in_parts_counts_from_its_first_part(small: InProcessHost) -> None:
    client = await small.initialize(LEDGER)
    await until(lambda: held(small) == 0)
    slow = small.open(
        "POST", LEDGER, None, {"Content-Type": "application/json", "Accept": "*/*", "Mcp-Session-Id": client.id}
    )
    slow._inbox.put_nowait({"type": "http.request", "body": b" " * 100_000, "more_body": True})
    slow._inbox.put_nowait({"type": "http.request", "body": b" " * 100_000, "more_body": True})
    await until(lambda: held(small) == 200_000)
    slow.leave()
    await until(lambda: held(small) == 0)


@pytest.mark.parametrize("kind", ["call", "notification", "answer"])
@pytest.mark.parametrize("wire", ["streamable-http", "sse"])
async def test_session_that_waits_keeps_none_of_its_messages(small: InProcessHost, kind: str, wire: str) -> None:
    sse = await small.open_sse(LEDGER)
    await sse.initialize()
    client: Any = sse if wire == "sse" else await small.initialize(LEDGER)
    canary = f"canary of {wire}, {kind}"  # other tests have theirs, in objects that are still there
    padding = f"{canary} {'x' * 100_000}"
    message: Any = tool_call("large", "echo", text="x", padding=padding)
    if kind == "notification":
        message = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"message": padding}}
    elif kind == "answer":
        message = {"jsonrpc": "2.0", "id": "unasked", "result": {"text": padding}}
    gc.collect()
    gc.disable()
    try:
        assert (await client.post(message).reply()).status in (200, 202)
        del message
        # Not isinstance, which evaluates Django's lazy objects.
        await until(lambda: not any(type(found) in KEPT and canary in str(found) for found in gc.get_objects()))
    finally:
        gc.enable()
        sse.stream.leave()


@pytest.mark.parametrize("is_request", [True, False])
async def test_stream_that_does_not_begin_with_initialize_begins_with_a_short_message(
    small: InProcessHost, is_request: bool
) -> None:
    """The SDK keeps it as long as the stream."""
    meta = {f"{META}protocolVersion": STATELESS, f"{META}clientCapabilities": {}}
    large = tool_call(1, "echo", text="x" * 1_000_000)
    large["params"]["_meta"] = meta
    if not is_request:
        large = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"message": "x" * 1_000_000}}
    async with await small.open_sse(LEDGER) as sse:
        assert (await sse.post(large).reply()).status == 413
        assert "tools" in (await sse.request("tools/list", {"_meta": meta}))["result"]
        # The stream has begun.
        answer = await sse.request("tools/call", {"name": "echo", "arguments": {"text": "x" * 300_000}, "_meta": meta})
        assert len(answer["result"]["content"][0]["text"]) == 300_000


async def test_small_messages_count_too(small: InProcessHost) -> None:
    client = await small.initialize(LEDGER)
    await until(lambda: held(small) == 0)
    call = client.start("hold", name="small", quiet=True)
    await until(lambda: held(small) == SMALL_MESSAGE_BYTES)
    await client.call("release", name="small")
    await call.reply()
    assert (await client.post(request("ping", None, 1)).reply()).status == 200
    await until(lambda: held(small) == 0)
