"""Which protocol a request to the session URL speaks, in process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.in_process import InProcessHost, host_in_process
from tests.support.processes import ROOT
from tests.support.streamable import META, STATELESS, initialize_message
from tests.support.wire import NEWEST_HANDSHAKE, request, tool_call

LEDGER = "/ledger/ada:key"


@pytest.fixture
async def host() -> AsyncIterator[InProcessHost]:
    async with host_in_process(ROOT / "tests" / "servers" / "eras") as host:
        yield host


@pytest.mark.parametrize("method_header", [{}, {"Mcp-Method": "initialize"}], ids=["", "Mcp-Method"])
@pytest.mark.parametrize("version", [NEWEST_HANDSHAKE, STATELESS, "2099-01-01", "nonsense", ""])
async def test_initialize_is_negotiated_whatever_the_version_header_says(
    host: InProcessHost, version: str, method_header: dict[str, str]
) -> None:
    headers = {"MCP-Protocol-Version": version, **method_header}
    for proposed in (version or NEWEST_HANDSHAKE, NEWEST_HANDSHAKE):
        reply = await host.post(LEDGER, initialize_message(proposed), headers).reply()
        assert (reply.status, reply.json["result"]["protocolVersion"]) == (200, NEWEST_HANDSHAKE)
        assert reply.headers["mcp-session-id"]


async def test_initialize_with_a_newer_header_opens_a_session_that_works(host: InProcessHost) -> None:
    client = await host.initialize(LEDGER, headers={"MCP-Protocol-Version": STATELESS})
    assert await client.call("echo", text="negotiated") == "negotiated"


@pytest.mark.parametrize("version", [STATELESS, "2099-01-01", ""])
async def test_sse_stream_opens_whatever_the_version_header_says(host: InProcessHost, version: str) -> None:
    async with await host.open_sse(LEDGER, {"MCP-Protocol-Version": version}) as client:
        assert (await client.initialize())["protocolVersion"] == NEWEST_HANDSHAKE
        assert await client.call("echo", text="opened") == "opened"


@pytest.mark.parametrize("version", [STATELESS, "2099-01-01"])
async def test_session_streams_and_ends_whatever_the_version_header_says(host: InProcessHost, version: str) -> None:
    client = await host.initialize(LEDGER)
    client.headers["MCP-Protocol-Version"] = version
    assert await client.get().status() == 200
    assert await client.delete() == 200
    assert await client.delete() == 404


@pytest.mark.parametrize(
    "message",
    [tool_call(1, "echo", text="x"), request("ping", None, 1), {"jsonrpc": "2.0", "method": "initialize"}],
    ids=["call", "ping", "initialize without an id"],
)
async def test_other_messages_with_a_stateless_header_are_stateless(host: InProcessHost, message: Any) -> None:
    reply = await host.post(LEDGER, message, {"MCP-Protocol-Version": STATELESS}).reply()
    assert reply.status in (202, 400)
    assert "mcp-session-id" not in reply.headers
    assert len(host.host.sessions) == 0


async def test_unsupported_version_on_a_session_is_refused(host: InProcessHost) -> None:
    client = await host.initialize(LEDGER)
    for method in ("ping", "tools/list"):
        reply = await client.post(request(method, None, 1), {"MCP-Protocol-Version": "2099-01-01"}).reply()
        assert (reply.status, reply.json["id"]) == (400, 1)


ECHO = '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": {"text": "%s"}%s}}'
ENVELOPE = f', "_meta": {{"{META}protocolVersion": "{STATELESS}", "{META}clientCapabilities": {{}}}}'


@pytest.mark.parametrize("text", [r"\ud83d", r"cut \uD83D", r"\udc00\ud800", r"\\\ud83d"])
async def test_half_of_a_surrogate_pair_reaches_the_tool_on_every_transport(host: InProcessHost, text: str) -> None:
    client = await host.initialize(LEDGER)
    handshake = await client.post((ECHO % (text, "")).encode()).reply()
    stateless = await host.post(
        LEDGER,
        (ECHO % (text, ENVELOPE)).encode(),
        {"MCP-Protocol-Version": STATELESS, "Mcp-Method": "tools/call", "Mcp-Name": "echo"},
    ).reply()
    async with await host.open_sse(LEDGER) as sse:
        await sse.initialize()
        assert (await sse.post((ECHO % (text, "")).encode()).reply()).status == 202
        answers = [handshake.json, stateless.json, await sse.stream.message()]
    for answer in answers:
        # JSON cannot carry it back, so it is written as text.
        assert answer["result"]["content"][0]["text"].lower().endswith((r"\ud83d", r"\ud800")), answer


@pytest.mark.parametrize(
    "body",
    [
        rb'{"jsonrpc": "2.0", "id": "\ud83d", "method": "ping"}',
        rb'{"jsonrpc": "2.0", "id": 1, "method": "\ud83d"',
        rb'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": "\ud83d", "y": NaN}}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": "\\ud83d", "y": "\xed\xa0\xbd"}}',
        rb'{"x": "\ud83d", "y": ' + b"[" * 19_000,
    ],
    ids=["in the id", "half an object", "NaN", "raw bytes", "deep nesting"],
)
async def test_message_with_half_a_surrogate_pair_is_checked_like_any_other(host: InProcessHost, body: bytes) -> None:
    client = await host.initialize(LEDGER)
    stateless = {"MCP-Protocol-Version": STATELESS, "Mcp-Method": "ping"}
    for exchange in (client.post(body), host.post(LEDGER, body, stateless)):
        reply = await exchange.reply()
        assert (reply.status, reply.json["id"]) == (400, None)
    assert await client.call("echo", text="alive") == "alive"


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\u0085b", "\u2028", "ü\u2028ß\u0085"])
async def test_clients_that_split_lines_at_unicode_breaks_get_whole_events(host: InProcessHost, text: str) -> None:
    async with await host.open_sse(LEDGER) as sse:
        await sse.initialize()
        assert await sse.call("echo", text=text) == text
    client = await host.initialize(LEDGER)
    standalone = client.get()
    await standalone.status()
    await client.call("announce", text=text)
    assert (await standalone.message())["params"]["data"] == f"{text}0"


BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36", "Accept": "text/event-stream"}


@pytest.mark.parametrize("path", [LEDGER, "/ledger/eve"])
async def test_browser_that_does_not_say_which_page_made_a_request_opens_no_stream(
    host: InProcessHost, path: str
) -> None:
    """An <img> with referrerpolicy="no-referrer", in a browser that sends no Sec-Fetch-Site."""
    reply = await host.request("GET", path, b"", BROWSER)
    assert reply.status == 403
    assert "browser" in reply.json["error"]
    assert (len(host.host.sessions), len(host.host.instances)) == (0, 0)


@pytest.mark.parametrize(
    "says",
    [
        {"Origin": "http://localhost"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Referer": "http://localhost/-/connect/"},
        {"User-Agent": "python-httpx/0.28"},
    ],
)
async def test_browser_that_says_which_page_made_a_request_opens_a_stream(
    host: InProcessHost, says: dict[str, str]
) -> None:
    async with await host.open_sse(LEDGER, {**BROWSER, **says}) as client:
        await client.initialize()
        assert await client.call("echo", text="opened") == "opened"
