"""The spans of requests and messages, in process: one tree for each call, on every transport, and nothing secret."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from gateway.host.json_log import JsonLines
from tests.support.in_process import WAIT_SECONDS, InProcessHost, host_in_process
from tests.support.server_folders import write_main
from tests.support.streamable import META
from tests.support.traces import PARENT, TRACE, TRACEPARENT, KeptTraces, Span
from tests.support.wire import request

CANARY = "canary-5d1e"
USER = "lovelace"
TARGET = f"/{{}}/{USER}:{CANARY}-key"
OTHER_TRACE = "a" * 32
LEGACY_ERAS = ("sse", "2025")
ERAS = (*LEGACY_ERAS, "2026")

VERSION_2 = """
    import asyncio, json, logging
    from mcp.server import Server
    from mcp_types import CallToolResult, ListToolsResult, TextContent, Tool
    from opentelemetry import trace

    def where():
        logging.getLogger("author").warning("handling")
        context = trace.get_current_span().get_span_context()
        return json.dumps([f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_state.to_header()])

    async def list_tools(ctx, params):
        return ListToolsResult(tools=[Tool(name=name, input_schema={"type": "object"}) for name in NAMES])

    NAMES = ("where", "break", "fail", "wait")

    async def call_tool(ctx, params):
        if params.name == "break":
            raise ValueError(params.arguments["text"])
        if params.name == "wait":
            await asyncio.sleep(60)
        text = where() if params.name == "where" else params.arguments["text"]
        return CallToolResult(content=[TextContent(type="text", text=text)], is_error=params.name == "fail")

    def server(user_id, api_key=None):
        return Server("version_2", version="1", on_list_tools=list_tools, on_call_tool=call_tool)

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""

VERSION_1 = """
    import asyncio, json
    from mcp.server import NotificationOptions, Server
    from mcp.server.models import InitializationOptions
    from mcp.types import TextContent, Tool
    from opentelemetry import trace

    def where():
        context = trace.get_current_span().get_span_context()
        return json.dumps([f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_state.to_header()])

    def server(user_id, api_key=None):
        server = Server("version_1")

        @server.list_tools()
        async def list_tools():
            return [Tool(name=name, inputSchema={"type": "object"}) for name in ("where", "break", "fail", "wait")]

        @server.call_tool()
        async def call_tool(name, arguments):
            if name == "where":
                return [TextContent(type="text", text=await asyncio.to_thread(where))]
            raise ValueError(arguments["text"])

        return server

    def get_initialization_options(instance):
        return InitializationOptions(
            server_name="version_1",
            server_version="1",
            capabilities=instance.get_capabilities(NotificationOptions(), {}),
        )
"""


@pytest.fixture
def traces() -> KeptTraces:
    return KeptTraces()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("servers")
    write_main(folder, "version_1", VERSION_1)
    write_main(folder, "version_2", VERSION_2)
    return folder


@pytest.fixture
async def host(servers: Path, traces: KeptTraces) -> AsyncIterator[InProcessHost]:
    async with host_in_process(servers, tracing=traces.tracing) as host:
        yield host


async def call(
    host: InProcessHost,
    era: str,
    tool: str,
    server: str = "version_2",
    headers: dict[str, str] | None = None,
    meta: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """List the tools, call one of them on the transport of an era, and return its answer."""
    target, headers = TARGET.format(server), headers or {}
    params = {"name": tool, "arguments": arguments, "_meta": meta or {}}
    if era == "sse":
        async with await host.open_sse(target) as sse:
            await sse.initialize()
            await sse.request("tools/list")
            await host.post(sse.endpoint, request("tools/call", params, f"{CANARY}-id"), headers).reply()
            return await sse.stream.message()
    if era == "2025":
        client = await host.initialize(target)
        await client.post(request("tools/list", {}, 1)).reply()
        return (await client.post(request("tools/call", params, f"{CANARY}-id"), headers).reply()).json
    await host.post_stateless(target, "tools/list").reply()
    own = {f"{META}protocolVersion": "2026-07-28", f"{META}clientCapabilities": {}}
    fields = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": tool, **headers}
    message = request("tools/call", {**params, "_meta": {**(meta or {}), **own}}, f"{CANARY}-id")
    return (await host.post(target, message, fields).reply()).json


def call_spans(traces: KeptTraces, tool: str) -> tuple[Span, Span]:
    """The span of the request that brought a call, and that of the call."""
    (called,) = [span for span in traces.spans if span.name == f"tools/call {tool}"]
    (brought,) = [span for span in traces.spans if span.id == called.parent]
    return brought, called


def text(answer: Any) -> Any:
    return json.loads(answer["result"]["content"][0]["text"])


@pytest.mark.parametrize("server", ["version_1", "version_2"])
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("carrier", ["headers", "_meta", "both"])
async def test_call_is_one_tree_from_the_client_through_the_host_to_the_handler(
    host: InProcessHost, traces: KeptTraces, carrier: str, era: str, server: str
) -> None:
    fields = {"traceparent": TRACEPARENT, "tracestate": "vendor=value"}
    headers = fields if carrier != "_meta" else {}
    meta = fields if carrier != "headers" else {}
    trace, span, state = text(await call(host, era, "where", server, headers, meta))
    brought, called = call_spans(traces, "where")
    assert (brought.trace, brought.parent) == (TRACE, PARENT)
    assert (called.trace, called.parent) == (TRACE, brought.id)
    assert (trace, span, state) == (TRACE, called.id, "vendor=value")


@pytest.mark.parametrize("era", ERAS)
async def test_call_without_a_trace_begins_one(host: InProcessHost, traces: KeptTraces, era: str) -> None:
    trace, span, _ = text(await call(host, era, "where"))
    brought, called = call_spans(traces, "where")
    assert (brought.parent, called.parent) == ("", brought.id)
    assert (trace, span) == (called.trace, called.id) == (brought.trace, called.id)


async def test_message_belongs_to_its_sender_where_a_proxy_began_another_trace(
    host: InProcessHost, traces: KeptTraces
) -> None:
    headers = {"traceparent": f"00-{OTHER_TRACE}-{PARENT}-01"}
    await call(host, "2026", "where", headers=headers, meta={"traceparent": TRACEPARENT})
    (called,) = [span for span in traces.spans if span.name == "tools/call where"]
    (brought,) = [span for span in traces.spans if span.trace == OTHER_TRACE]
    assert (called.trace, called.parent, called.links) == (TRACE, PARENT, (OTHER_TRACE,))
    assert brought.kind == "SERVER"


@pytest.mark.parametrize("era", ERAS)
async def test_malformed_trace_of_a_client_is_ignored(host: InProcessHost, traces: KeptTraces, era: str) -> None:
    bad = {"traceparent": f"00-{CANARY}", "tracestate": f"{CANARY}"}
    assert text(await call(host, era, "where", headers=bad, meta={"traceparent": 5, "tracestate": [CANARY]}))
    brought, called = call_spans(traces, "where")
    assert (brought.parent, called.parent) == ("", brought.id)
    assert CANARY not in "".join(span.shown for span in traces.spans)


async def test_spans_say_what_was_asked_of_which_server_and_how_it_ended(
    host: InProcessHost, traces: KeptTraces
) -> None:
    for era in ERAS:
        await call(host, era, "where", headers={"X-Request-ID": "5f3c9e0a-1b2c"})
    messages = [span for span in traces.spans if span.name == "tools/call where"]
    requests = {span.id: span for span in traces.spans if span.name.startswith("POST")}
    route = "/{server_name}/{session_key}"
    for span, (transport, version, path, status) in zip(
        messages,
        [
            ("sse", "2025-11-25", f"{route}/messages/", 202),
            ("streamable-http", "2025-11-25", route, 200),
            ("stateless", "2026-07-28", route, 200),
        ],
        strict=True,
    ):
        assert span.attributes == {
            "mcp.method.name": "tools/call",
            "mcp.protocol.version": version,
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "where",
            "gumcp.server": "version_2",
            "gumcp.outcome": "ok",
        }
        brought = requests[span.parent]
        assert brought.name == f"POST {path}"
        assert brought.attributes == {
            "http.request.method": "POST",
            "http.route": path,
            "http.response.status_code": status,
            "url.scheme": "http",
            "gumcp.server": "version_2",
            "gumcp.transport": transport,
            "mcp.protocol.version": version,
            "gumcp.request_id": "5f3c9e0a-1b2c",
        }


@pytest.mark.parametrize(
    ("server", "tool", "outcome", "error"),
    [
        ("version_2", "fail", "error", "tool_error"),
        ("version_2", "break", "exception", "ValueError"),
        ("version_1", "break", "error", "tool_error"),
        ("version_2", "wait", "timeout", "timeout"),
    ],
)
@pytest.mark.parametrize("era", ERAS)
async def test_call_that_fails_has_an_outcome_and_an_error_type(
    host: InProcessHost, traces: KeptTraces, era: str, server: str, tool: str, outcome: str, error: str
) -> None:
    with override_settings(GUMCP_CALL_TIMEOUT_SECONDS=0.05):
        await call(host, era, tool, server, text=CANARY)
    _, called = call_spans(traces, tool)
    assert (called.attributes["gumcp.outcome"], called.attributes["error.type"]) == (outcome, error)
    assert '"status_code": "ERROR"' in called.shown


async def test_call_that_the_host_refuses_says_so(host: InProcessHost, traces: KeptTraces) -> None:
    client = await host.initialize(TARGET.format("version_2"))
    await client.post(request("tools/list", {}, 1)).reply()
    with override_settings(GUMCP_MAX_CONCURRENT_CALLS=1):
        waiting = client.start("wait", "waiting")
        async with asyncio.timeout(WAIT_SECONDS):
            while not any(calls.by_user for calls in host.host.instances.calls):
                await client.post(request("ping", {}, 2)).reply()
        refused = (await client.start("where").reply()).json
        assert "1 calls already" in refused["result"]["content"][0]["text"]
        cancelled = {"method": "notifications/cancelled", "params": {"requestId": "waiting"}}
        await client.post({"jsonrpc": "2.0", **cancelled}).reply()
        await waiting.reply()
    _, called = call_spans(traces, "where")
    assert (called.attributes["gumcp.outcome"], called.attributes["error.type"]) == ("refused", "refused")


@pytest.mark.parametrize(
    ("path", "status", "server"),
    [(f"/nowhere/{CANARY}:x", 404, None), (f"/version_2/%ff{CANARY}", 400, None), (f"/version_2/{CANARY}", 404, "x")],
)
async def test_request_that_is_refused_has_a_span_with_its_status(
    host: InProcessHost, traces: KeptTraces, path: str, status: int, server: str | None
) -> None:
    headers = {"Mcp-Session-Id": CANARY, "Accept": "application/json, text/event-stream"}
    reply = await host.request("POST", path, b"{}", {**headers, "Content-Type": "application/json"})
    (span,) = traces.spans
    assert (reply.status, span.attributes["http.response.status_code"]) == (status, status)
    assert CANARY not in span.shown


async def test_open_stream_has_a_span_when_it_ends(host: InProcessHost, traces: KeptTraces) -> None:
    async with await host.open_sse(TARGET.format("version_2")) as sse:
        await sse.initialize()
        assert "GET" not in "".join(span.name for span in traces.spans)
    (stream,) = [span for span in traces.spans if span.name.startswith("GET")]
    assert stream.attributes["gumcp.transport"] == "sse"
    assert "error.type" not in stream.attributes


async def test_request_that_an_error_of_the_host_ends_has_a_span_without_its_text(
    host: InProcessHost, traces: KeptTraces, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*_: Any) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(host.host.instances, "acquire", acquire)
    with pytest.raises(RuntimeError):
        await host.post_stateless(TARGET.format("version_2"), "tools/list").reply()
    (span,) = traces.spans
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (500, "RuntimeError")
    assert CANARY not in span.shown


class JsonLog(logging.Handler):
    """Formats records where they are logged, as a handler of the host does."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


async def test_lines_of_the_json_log_name_their_trace(host: InProcessHost, caplog: pytest.LogCaptureFixture) -> None:
    log = JsonLog()
    names = ("author", "gateway.endpoints.consumers")
    for name in names:
        caplog.set_level(logging.INFO, name)
        logging.getLogger(name).addHandler(log)
    try:
        await call(host, "2026", "where", headers={"traceparent": TRACEPARENT})
        async with await host.open_sse(TARGET.format("version_2"), {"traceparent": TRACEPARENT}):
            pass
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(log)
    assert {line["message"].split()[0] for line in log.lines} >= {"handling", "SSE"}
    assert {line["trace"] for line in log.lines} == {TRACE}


@pytest.mark.parametrize("server", ["version_1", "version_2"])
@pytest.mark.parametrize("era", ERAS)
async def test_nothing_that_callers_send_or_get_is_in_a_span(
    host: InProcessHost, traces: KeptTraces, era: str, server: str
) -> None:
    for tool in ("where", "fail", "break", f"{CANARY}-tool"):
        await call(host, era, tool, server, text=CANARY, meta={CANARY: CANARY})
    target = TARGET.format(server)
    await host.request("GET", f"{target}/messages/?session_id={CANARY}")
    client = await host.initialize(target)
    for method, params in (
        ("resources/read", {"uri": f"file:///{CANARY}"}),
        (f"{CANARY}/method", {"text": CANARY}),
        ("prompts/get", {"name": CANARY, "arguments": {CANARY: CANARY}}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": CANARY}, "argument": {"value": CANARY}}),
    ):
        await client.post(request(method, params, f"{CANARY}-{method}")).reply()
    for version in (CANARY, "2025-11-25"):
        params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": CANARY, "version": CANARY}}
        await host.post(target, request("initialize", params, 1), {"MCP-Protocol-Version": CANARY}).reply()
        async with await host.open_sse(target) as sse:
            await sse.post(request("initialize", params, 1)).reply()
    session_ids = {client.id}
    shown = "".join(span.shown for span in traces.spans)
    assert len(traces.spans) > 12
    assert CANARY not in shown
    assert USER not in shown
    assert not [session_id for session_id in session_ids if session_id in shown]


async def test_unsampled_calls_leave_no_span_and_still_hand_their_trace_on(servers: Path) -> None:
    traces = KeptTraces(ALWAYS_OFF)
    async with host_in_process(servers, tracing=traces.tracing) as host:
        trace, _, _ = text(await call(host, "2025", "where", headers={"traceparent": TRACEPARENT}))
    assert trace == TRACE
    assert traces.spans == []


@pytest.mark.parametrize("era", ERAS)
async def test_without_tracing_nothing_is_recorded_and_calls_work(servers: Path, era: str) -> None:
    async with host_in_process(servers) as host:
        trace, span, _ = text(await call(host, era, "where", headers={"traceparent": TRACEPARENT}))
    assert (trace, span) == ("0" * 32, "0" * 16)
