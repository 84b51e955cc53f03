"""The session URL's door without an HTTP server: what changes while a request's body is on its way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.access import key_watch
from gateway.access.authenticator import Authenticator
from gateway.access.key_watch import KeyWatch
from gateway.access.limits import RateLimits
from gateway.catalog.discovery import discover
from gateway.catalog.registry import Registry
from gateway.endpoints.session import SessionEndpoint
from gateway.host.host import Host
from gateway.instances.policies import default_policy
from tests.support.key_rows import Rows
from tests.support.processes import until
from tests.support.server_folders import WriteServer
from tests.support.streamable import META, STATELESS, initialize_message

SERVER = """
    import asyncio

    from mcp.server import Server
    from mcp_types import CallToolResult, TextContent

    built = []
    called = []
    may_end = asyncio.Event()

    def server(user_id, api_key=None):
        built.append(user_id)

        async def call_tool(ctx, params):
            called.append(user_id)
            if params.name == "stubborn":
                await ctx.session.report_progress(1.0)
                while not may_end.is_set():
                    try:
                        await may_end.wait()
                    except asyncio.CancelledError:
                        pass
            return CallToolResult(content=[TextContent(type="text", text="called")])

        return Server("patient", version="1", on_call_tool=call_tool)

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""


class Exchange:
    """One POST whose body comes when the test says so."""

    def __init__(self, host: Host, message: Any, key: str = "ada:key", headers: dict[str, str] | None = None) -> None:
        self._body = json.dumps(message).encode()
        self._parts: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[Any] = []
        common = {"host": "localhost", "content-type": "application/json", "accept": "*/*"}
        fields = {**common, **(headers or {})}
        self._scope = {
            "type": "http",
            "method": "POST",
            "path": f"/patient/{key}",
            "raw_path": f"/patient/{key}".encode(),
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in fields.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 1),
            "url_route": {"args": (), "kwargs": {"server_name": "patient", "session_key": key}},
        }
        self.answering = asyncio.create_task(SessionEndpoint(host)(self._scope, self._parts.get, self._send))

    async def _send(self, message: Any) -> None:
        if not message.get("more_body", False):
            await asyncio.sleep(0.05)  # the end of a stream takes its time to a client, too
        self.sent.append(message)

    async def finish(self) -> int:
        """Send the body and return the status of the answer."""
        self.send_body()
        async with asyncio.timeout(5):
            await self.answering
        return self.status

    def send_body(self) -> None:
        self._parts.put_nowait({"type": "http.request", "body": self._body})

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])


def call_message(tool: str = "call") -> tuple[Any, dict[str, str]]:
    """A stateless call, and its headers."""
    meta = {f"{META}protocolVersion": STATELESS, f"{META}clientCapabilities": {}, "progressToken": 1}
    message = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": tool, "arguments": {}, "_meta": meta},
    }
    return message, {"MCP-Protocol-Version": STATELESS, "Mcp-Method": "tools/call", "Mcp-Name": tool}


HANDSHAKE = (initialize_message(), {})

both_eras = pytest.mark.parametrize("message", [HANDSHAKE, call_message()], ids=["handshake", "stateless"])


@asynccontextmanager
async def new_host(directory: Path) -> AsyncIterator[tuple[Host, dict[str, Any]]]:
    """A host of one server and that server's globals, without database, metrics and upkeep."""
    found = discover([directory])
    host = Host(Registry(found))
    host.loop.bind()
    try:
        yield host, found.definitions[0].style.server.__globals__
    finally:
        await host.instances.stop()
        await asyncio.to_thread(host.close)


@both_eras
async def test_request_for_a_server_that_is_switched_off_while_its_body_comes_makes_no_instance(
    write_server: WriteServer, message: tuple[Any, dict[str, str]]
) -> None:
    async with new_host(write_server("patient", SERVER)) as (host, module):
        exchange = Exchange(host, message[0], headers=message[1])
        await asyncio.sleep(0.01)
        host.policies.replace({"patient": replace(default_policy(), is_enabled=False)})
        host.availability.end_disabled("patient")
        assert await exchange.finish() == 503
        assert (module["built"], len(host.instances), len(host.sessions)) == ([], 0, 0)


async def test_streamed_call_that_is_ended_counts_as_stuck_until_it_returns(write_server: WriteServer) -> None:
    async with new_host(write_server("patient", SERVER)) as (host, module):
        message, headers = call_message("stubborn")
        exchange = Exchange(host, message, headers=headers)
        exchange.send_body()
        await asyncio.to_thread(until, lambda: b"progress" in b"".join(part.get("body", b"") for part in exchange.sent))
        host.availability.end_disabled("patient")
        await asyncio.wait_for(exchange.answering, 5)
        (calls,) = host.instances.calls
        try:
            await asyncio.to_thread(until, lambda: calls.stuck == 1, 3)
        finally:
            host.lanes.get("patient").post(module["may_end"].set)
        await asyncio.to_thread(until, lambda: calls.stuck == 0)


@both_eras
async def test_request_whose_key_is_revoked_while_its_body_comes_is_refused_however_long_that_took(
    write_server: WriteServer, message: tuple[Any, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_watch, "IN_USE_SECONDS", 0.01)
    rows, limits = Rows(), RateLimits({})
    key = rows.issue("ada")
    async with new_host(write_server("patient", SERVER)) as (host, module):
        authenticator = host.doorkeeper.authenticator = Authenticator("keys", rows, limits)
        watch = KeyWatch(authenticator, rows, limits, host.doorkeeper._end_revoked)  # type: ignore[arg-type]
        slow, quick = (Exchange(host, message[0], f"ada:{key.text}", message[1]) for _ in range(2))
        assert await quick.finish() == 200
        begun = (len(module["built"]), len(module["called"]))
        host.instances.drop("patient")
        await asyncio.sleep(0.05)
        rows.change(key, is_active=False)
        watch.refresh()
        assert await slow.finish() == 401
        assert (len(module["built"]), len(module["called"])) == begun
        grants = authenticator.grants_in_use(0)
        assert not [grant for grant in grants if grant.is_in_use or grant.requests]
