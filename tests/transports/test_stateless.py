from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import pytest
from mcp_types import SubscriptionsListenRequestParams, ToolListChangedNotification

from gateway.exceptions import ServerDisabled
from gateway.transports.event_stream import EventStream
from gateway.transports.reply import Reply
from gateway.transports.stateless import StatelessCall, is_stateless
from gateway.transports.stateless_calls import StatelessCalls
from tests.support.asgi_client import AsgiClient
from tests.support.lane_server import SCOPE, LaneServer
from tests.support.processes import until
from tests.support.streamable import META, STATELESS

ENVELOPE = {f"{META}protocolVersion": STATELESS, f"{META}clientCapabilities": {}}


def call_message(tool: str, meta: Mapping[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    params = {"name": tool, "arguments": arguments, "_meta": {**ENVELOPE, **(meta or {})}}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


class Exchange:
    """One stateless request and its client."""

    def __init__(
        self,
        workshop: LaneServer,
        message: Any,
        headers: Mapping[str, str] | None = None,
        *,
        is_listening: bool = False,
    ) -> None:
        self.client = AsgiClient()
        stream = EventStream(self.client.send, buffer_bytes=10_000, slow_reader_seconds=5)
        self.reply = Reply(lambda: stream, self.client.send)
        fields = {"MCP-Protocol-Version": STATELESS}
        if isinstance(message, dict):
            fields["Mcp-Method"] = str(message.get("method"))
            fields["Mcp-Name"] = str((message.get("params") or {}).get("name", ""))
        fields.update(headers or {})
        scope = {**SCOPE, "headers": [(name.lower().encode(), text.encode()) for name, text in fields.items() if text]}
        self.call = StatelessCall(
            workshop,  # type: ignore[arg-type]
            "workshop",
            scope,
            message,
            self.reply,
            is_listening=is_listening,
        )
        self.call.start()
        self.running = asyncio.create_task(self.reply.run(self.client.receive, silence_seconds=60, counted=nullcontext))

    async def end(self) -> bool:
        async with asyncio.timeout(5):
            return await self.running

    async def json(self) -> tuple[int, Any]:
        """Status and body of the answer, which is JSON."""
        await self.end()
        return self.client.status, json.loads(self.client.body) if self.client.body else None


async def wait(condition: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(until, condition)


async def test_result_is_answered_with_json(workshop: LaneServer) -> None:
    status, answer = await Exchange(workshop, call_message("echo", text="hello")).json()
    assert (status, answer["id"], answer["result"]["content"][0]["text"]) == (200, 1, "hello")


async def test_notification_of_the_handler_makes_the_answer_a_stream(workshop: LaneServer) -> None:
    meta = {f"{META}logLevel": "info"}
    exchange = Exchange(workshop, call_message("tell", meta, text="first", waits=True))
    await wait(lambda: len(exchange.client.messages) == 1)
    workshop.open()
    assert await exchange.end() is True
    told, answer = exchange.client.messages
    assert (told["params"]["data"], answer["result"]["content"][0]["text"]) == ("first", "first")


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ({"jsonrpc": "2.0", "method": "notifications/cancelled"}, 202),
        ({"jsonrpc": "2.0", "method": 5}, 400),
        ([call_message("echo")], 400),
        ({"jsonrpc": "2.0", "id": 1, "result": {}}, 400),
        ({"jsonrpc": "2.0", "id": 1.5, "method": "tools/list"}, 400),
        ({"jsonrpc": "2.0", "id": "\ud83d", "method": "tools/list"}, 400),
        ("text", 400),
        (None, 400),
    ],
)
async def test_only_one_request_or_notification_is_taken(workshop: LaneServer, message: Any, status: int) -> None:
    found, answer = await Exchange(workshop, message).json()
    assert found == status
    assert answer is None or (answer["id"], answer["error"]["code"]) == (None, -32600)


@pytest.mark.parametrize(
    ("message", "headers", "status", "code"),
    [
        ({**call_message("echo"), "method": "no/such"}, {}, 404, -32601),
        (call_message("echo"), {"Mcp-Method": "tools/list"}, 400, -32020),
        (call_message("echo"), {"Mcp-Name": "other"}, 400, -32020),
        (call_message("echo"), {"MCP-Protocol-Version": "2099-01-01"}, 400, -32020),
        ({**call_message("echo"), "params": {"name": "echo"}}, {}, 400, -32602),
        (call_message("deliver", region="north"), {"Mcp-Param-Region": "south"}, 400, -32020),
        (call_message("deliver", region="north"), {}, 400, -32020),
    ],
    ids=["method", "Mcp-Method", "Mcp-Name", "version", "no envelope", "Mcp-Param", "missing Mcp-Param"],
)
async def test_headers_are_checked_against_the_body(
    workshop: LaneServer, message: Any, headers: dict[str, str], status: int, code: int
) -> None:
    found, answer = await Exchange(workshop, message, headers).json()
    assert (found, answer["id"], answer["error"]["code"]) == (status, 1, code)
    assert workshop.called == []


async def test_exception_of_a_handler_is_told_in_general_words(workshop: LaneServer) -> None:
    status, answer = await Exchange(workshop, call_message("fail")).json()
    assert (status, answer["error"]["code"]) == (200, -32603)
    assert "canary" not in json.dumps(answer)


async def test_result_that_is_not_json_is_an_error(workshop: LaneServer) -> None:
    status, answer = await Exchange(workshop, call_message("unwritable")).json()
    assert (status, answer["id"], answer["error"]["code"]) == (200, 1, -32603)


@pytest.mark.parametrize("times", [1, 3])
async def test_cancel_reaches_the_handler_once_and_lets_it_clean_up(workshop: LaneServer, times: int) -> None:
    exchange = Exchange(workshop, call_message("tidy", name="one"))
    await wait(lambda: "one" in workshop.called)
    for _ in range(times):
        exchange.call.cancel()
        await asyncio.sleep(0.005)
    await wait(lambda: workshop.cancelled == ["one"])
    exchange.client.left.set()
    exchange.running.cancel()


async def test_cancel_before_the_start_reaches_the_handler_too(workshop: LaneServer) -> None:
    blocker = Exchange(workshop, call_message("block", name="blocker"))
    await wait(lambda: "blocker" in workshop.called)
    late = Exchange(workshop, call_message("wait", name="late"))
    late.call.cancel()
    workshop.unblock()
    await blocker.end()
    await wait(lambda: late.reply.stream.is_closed)
    assert workshop.called == ["blocker", *workshop.cancelled]
    late.running.cancel()


@pytest.mark.parametrize("is_stream", [False, True])
async def test_request_of_a_server_that_is_taken_away_is_ended(workshop: LaneServer, is_stream: bool) -> None:
    meta = {f"{META}logLevel": "info"}
    tool, text = ("tell", "first") if is_stream else ("wait", "")
    calls = StatelessCalls()
    exchange = Exchange(workshop, call_message(tool, meta, text=text, waits=True, name="one"))
    with calls.open(exchange.call):
        await wait(lambda: exchange.client.messages if is_stream else "one" in workshop.called)
        calls.end("bystander", ServerDisabled("Off."))
        assert not exchange.running.done()
        calls.end("workshop", ServerDisabled("Off."))
        await exchange.end()
    await wait(lambda: workshop.cancelled == ["one"])
    if is_stream:
        assert exchange.client.is_ended
    else:
        assert exchange.client.status == 503
        assert json.loads(exchange.client.body)["error"]["message"] == "Off."


async def test_listener_hears_of_new_code_and_is_ended(workshop: LaneServer) -> None:
    async def listen(ctx: Any, params: Any) -> Any:
        await asyncio.Event().wait()

    workshop.server.add_request_handler("subscriptions/listen", SubscriptionsListenRequestParams, listen)
    params = {"notifications": {"toolsListChanged": True}, "_meta": ENVELOPE}
    message = {"jsonrpc": "2.0", "id": 9, "method": "subscriptions/listen", "params": params}
    calls = StatelessCalls()
    exchange, other = (Exchange(workshop, body, is_listening=True) for body in (message, call_message("wait")))
    other.call.is_listening = False
    with calls.open(exchange.call), calls.open(other.call):
        calls.announce("workshop")
        await exchange.end()
        assert not other.running.done()
    assert [told["method"] for told in exchange.client.messages] == [
        ToolListChangedNotification.model_fields["method"].default
    ]
    for under_way in (exchange, other):
        under_way.call.cancel()
    other.running.cancel()


async def test_shutdown_ends_those_that_listen_only(workshop: LaneServer) -> None:
    calls = StatelessCalls()
    listener = Exchange(workshop, call_message("wait", name="listener"), is_listening=True)
    working = Exchange(workshop, call_message("wait", name="working"))
    with calls.open(listener.call), calls.open(working.call):
        await wait(lambda: len(workshop.called) == 2)
        calls.stop_listening()
        await listener.end()
        workshop.open()
        status, _ = await working.json()
    assert status == 200


@pytest.mark.parametrize(
    ("version", "expected"),
    [(None, False), ("", False), ("2025-11-25", False), ("2024-11-05", False), (STATELESS, True), ("2099-01-01", True)],
)
def test_header_that_names_no_handshake_version_is_stateless(version: str | None, expected: bool) -> None:
    assert is_stateless(version) is expected
