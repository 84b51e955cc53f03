"""What `CompatServer` does that the comparison with mcp 1.28 cannot show: where handlers run, and how we differ."""

import asyncio
import gc
import json
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.client.session import ClientRequestContext
from mcp.server import NotificationOptions, Server, ServerRequestContext
from mcp_types import INTERNAL_ERROR
from pydantic import AnyUrl, BaseModel

from gateway.compat.handler_threads import HandlerThreads
from gateway.compat.imports import import_sdk
from gateway.compat.server import CompatServer
from tests.support.deadlines import within
from tests.support.projects import SERVERS, importable_project, load_main

ERAS = pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])


@pytest.fixture
def threads() -> Iterator[HandlerThreads]:
    pool = HandlerThreads("shop", limit=3)
    yield pool
    pool.close(join_seconds=5)


@asynccontextmanager
async def connected(server: Server[Any], mode: str = "legacy", **options: Any) -> AsyncIterator[Client]:
    async with Client(server, mode=mode, cache=None, read_timeout_seconds=10, **options) as client:
        yield client


def text_of(result: types.CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, types.TextContent))


def tool(name: str, **others: Any) -> types.Tool:
    return types.Tool(name=name, input_schema={"type": "object"}, **others)


def server_with_tool(function: Any, threads: HandlerThreads | None = None, **options: Any) -> CompatServer:
    server = CompatServer("shop")
    server.handler_threads = threads

    @server.list_tools()
    async def list_tools() -> list[types.Tool]:
        return [tool("it")]

    server.call_tool(**options)(function)
    return server


async def say(text: str) -> list[types.TextContent]:
    return [types.TextContent(text=text)]


@ERAS
async def test_handlers_of_every_kind_run_off_the_loop_of_the_connection(threads: HandlerThreads, mode: str) -> None:
    here = threading.get_ident()
    seen: dict[str, bool] = {}
    server = CompatServer("shop")
    server.handler_threads = threads

    def off(kind: str) -> None:
        seen[kind] = threading.get_ident() != here

    @server.list_tools()
    async def list_tools() -> list[types.Tool]:
        off("tools/list")
        return [tool("it")]

    @server.call_tool()
    async def call_tool(name: str, arguments: dict[str, Any]) -> Any:
        off("tools/call")

        def lazy() -> Iterator[types.TextContent]:
            off("a generator's body")
            yield types.TextContent(text="x")

        return lazy()

    @server.read_resource()
    async def read_resource(uri: AnyUrl) -> str:
        off("resources/read")
        return "x"

    @server.get_prompt()
    async def get_prompt(name: str, arguments: Any) -> types.GetPromptResult:
        off("prompts/get")
        return types.GetPromptResult(messages=[])

    async with connected(server, mode) as client:
        await client.list_tools()
        await client.call_tool("it", {})
        await client.read_resource("a:///b")
        await client.get_prompt("p")

    assert seen == dict.fromkeys(seen, True)
    assert len(seen) == 5


async def test_blocking_tool_delays_no_other_call_of_another_user(threads: HandlerThreads) -> None:
    gate = threading.Event()

    async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
        if arguments:
            assert gate.wait(10)
        return await say("done")

    slow, quick = server_with_tool(call_tool, threads), server_with_tool(call_tool, threads)
    async with connected(slow) as one, connected(quick) as other:
        blocked = asyncio.create_task(one.call_tool("it", {"block": True}))
        for _ in range(5):
            began = time.monotonic()
            await other.call_tool("it", {})
            assert time.monotonic() - began < within(1)
        assert not blocked.done()
        gate.set()
        assert text_of(await blocked) == "done"


async def test_client_bound_to_its_loop_serves_calls_that_follow_each_other(threads: HandlerThreads) -> None:
    with importable_project() as namespace:
        module = load_main(SERVERS / "slow_vendor" / "main.py", namespace)
        instances = [module.server(name) for name in ("maria", "ines")]
        for instance in instances:
            instance.handler_threads = threads
        async with connected(instances[0]) as one, connected(instances[1]) as other:
            answers = [text_of(await client.call_tool("fetch", {"path": "/"})) for client in (one, other, one, other)]

    assert answers == [f"/ for slow-vendor-token-of-{name}" for name in ("maria", "ines", "maria", "ines")]


@ERAS
async def test_spilled_call_that_needs_the_home_loop_is_told_why_it_failed(threads: HandlerThreads, mode: str) -> None:
    gate, started = threading.Event(), threading.Event()
    shared: list[asyncio.Future[None]] = []

    async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
        if arguments["what"] == "share":
            shared.append(asyncio.get_running_loop().create_future())
        elif arguments["what"] == "block":
            started.set()
            assert gate.wait(10)
        else:
            await shared[0]
        return await say("done")

    server = server_with_tool(call_tool, threads)

    @server.read_resource()
    async def read_resource(uri: AnyUrl) -> str:
        await shared[0]
        return "done"

    async with connected(server, mode) as client:
        await client.call_tool("it", {"what": "share"})
        blocked = asyncio.create_task(client.call_tool("it", {"what": "block"}))
        assert await asyncio.to_thread(started.wait, 5)
        result = await client.call_tool("it", {"what": "wait"})
        with pytest.raises(MCPError, match="beside the server's own event loop"):
            await client.read_resource("a:///b")
        gate.set()
        await blocked

    assert result.is_error
    assert "belongs to another event loop. The call ran beside the server's own event loop" in text_of(result)
    assert "asyncio.to_thread" in text_of(result)


@ERAS
async def test_call_without_a_free_thread_is_an_error_result_that_says_so(threads: HandlerThreads, mode: str) -> None:
    gate, started = threading.Event(), threading.Event()

    async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
        started.set()
        assert gate.wait(10)
        return await say("done")

    threads.limit, threads.wait_seconds = 1, 0.1
    server = server_with_tool(call_tool, threads)
    async with connected(server, mode) as client:
        blocked = asyncio.create_task(client.call_tool("it", {}))
        assert await asyncio.to_thread(started.wait, 5)

        result = await client.call_tool("it", {})
        with pytest.raises(MCPError, match="limit 1") as caught:
            await client.list_tools()
        gate.set()
        await blocked

    assert result.is_error
    assert "1 calls of server 'shop' are running (limit 1)" in text_of(result)
    assert caught.value.code == INTERNAL_ERROR


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("stop"), BaseExceptionGroup("all", [SystemExit()])])
@pytest.mark.parametrize("is_threaded", [True, False])
async def test_tool_that_raises_no_exception_fails_its_own_call_only(
    threads: HandlerThreads, error: BaseException, is_threaded: bool
) -> None:
    async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
        if arguments:
            raise error
        return await say("still here")

    async with connected(server_with_tool(call_tool, threads if is_threaded else None)) as client:
        failed = await client.call_tool("it", {"fail": True})
        after = await client.call_tool("it", {})

    assert failed.is_error
    assert type(error).__name__ in text_of(failed)
    assert text_of(after) == "still here"


@ERAS
async def test_exception_of_a_handler_is_an_internal_error_with_its_text(mode: str) -> None:
    class Order(BaseModel):
        amount: int

    server = CompatServer("shop")

    @server.read_resource()
    async def read_resource(uri: AnyUrl) -> str:
        Order.model_validate({"amount": "many"})
        return ""

    async with connected(server, mode) as client:
        with pytest.raises(MCPError, match="1 validation error for Order") as caught:
            await client.read_resource("a:///b")

    assert caught.value.code == INTERNAL_ERROR


async def test_text_of_an_exception_is_in_no_log_above_debug(caplog: pytest.LogCaptureFixture) -> None:
    async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
        raise ValueError("https://vendor.example/?key=sesame")

    with caplog.at_level(logging.INFO):
        async with connected(server_with_tool(call_tool)) as client:
            assert "sesame" in text_of(await client.call_tool("it", {}))

    line = call_tool.__code__.co_firstlineno + 1
    assert f"Tool 'it' failed with ValueError at compat/test_server.py, line {line}" in caplog.text
    assert "sesame" not in caplog.text


async def test_failure_inside_a_library_is_logged_with_the_line_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    server = CompatServer("shop")

    @server.read_resource()
    async def read_resource(uri: AnyUrl) -> str:
        return str(json.loads("{"))

    with caplog.at_level(logging.INFO):
        async with connected(server) as client:
            with pytest.raises(MCPError):
                await client.read_resource("a:///b")

    line = read_resource.__code__.co_firstlineno + 2
    assert f"'resources/read' failed with JSONDecodeError at compat/test_server.py, line {line}" in caplog.text


@ERAS
async def test_uri_that_is_no_url_reaches_the_handler_as_text(mode: str) -> None:
    seen: list[object] = []
    server = CompatServer("shop")

    @server.read_resource()
    async def read_resource(uri: AnyUrl) -> str:
        seen.append(uri)
        return str(uri)

    async with connected(server, mode) as client:
        texts = [
            (await client.read_resource(uri)).contents[0].text  # type: ignore[union-attr]
            for uri in ("hunter_io://leads", "gdrive:///a b")
        ]

    assert type(seen[0]) is str
    assert isinstance(seen[1], AnyUrl)
    assert texts == ["hunter_io://leads", "gdrive:///a%20b"]
    assert seen[1] == "gdrive:///a b"
    assert seen[1] == AnyUrl("gdrive:///a b")


@ERAS
async def test_what_the_protocol_does_not_know_is_kept_in_meta(mode: str) -> None:
    server = CompatServer("shop")
    module_types = import_sdk("mcp.types", ("Tool",))

    @server.list_tools()
    async def list_tools() -> list[types.Tool]:
        return [
            module_types.Tool(
                name="it",
                inputSchema={"required": True, "properties": {"a": {"type": "string"}}},
                outputSchema=[{"type": "array"}],
                requiredScopes=["read"],
                _meta={"mine": 1},
            )
        ]

    @server.list_resources()
    async def list_resources() -> list[types.Resource]:
        return [module_types.Resource(uri=AnyUrl("a:///b"), name="b", hasChildren=True, parentUri="a:///")]

    async with connected(server, mode) as client:
        listed = (await client.list_tools()).tools[0]
        resource = (await client.list_resources()).resources[0]

    assert listed.output_schema is None
    assert listed.input_schema == {"type": "object", "properties": {"a": {"type": "string"}}}
    assert listed.meta == {
        "requiredScopes": ["read"],
        "outputSchema": [{"type": "array"}],
        "inputSchema": {"required": True, "properties": {"a": {"type": "string"}}},
        "mine": 1,
    }
    assert (resource.uri, resource.meta) == ("a:///b", {"hasChildren": True, "parentUri": "a:///"})


async def test_arguments_are_not_checked_unless_the_module_asks() -> None:
    async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
        return await say(f"got {arguments}")

    for asked in (False, True):
        server = CompatServer("shop")
        server.call_tool(validate_input=asked)(call_tool)

        @server.list_tools()
        async def list_tools() -> list[types.Tool]:
            return [types.Tool(name="it", input_schema={"type": "object", "required": ["undeclared"]})]

        async with connected(server) as client:
            result = await client.call_tool("it", {})
        wanted = "Input validation error: 'undeclared' is a required property" if asked else "got {}"
        assert (result.is_error, text_of(result)) == (asked, wanted)


async def test_session_is_usable_from_the_thread_of_a_handler(threads: HandlerThreads) -> None:
    mine = import_sdk("mcp", ("McpError",))

    async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
        session = server.request_context.session
        result = await session.create_message(
            messages=[types.SamplingMessage(role="user", content=types.TextContent(text="hello?"))], max_tokens=5
        )
        try:
            await session.elicit("Sure?", requestedSchema={"type": "object", "properties": {}})
        except mine.McpError as exc:
            refusal = exc.error.message
        client = session.client_params.clientInfo.name
        return await say(f"{result.content.text} {result.stopReason} {client} {refusal}")

    async def sample(context: ClientRequestContext, params: Any) -> types.CreateMessageResult:
        return types.CreateMessageResult(
            role="assistant", content=types.TextContent(text="hi"), model="m", stop_reason="endTurn"
        )

    server = server_with_tool(call_tool, threads)
    info = types.Implementation(name="tester", version="1")
    async with connected(server, sampling_callback=sample, client_info=info) as client:
        text = text_of(await client.call_tool("it", {}))

    assert text.startswith("hi endTurn tester ")
    assert "not supported" in text.lower()


def test_request_context_outside_of_a_request_is_a_lookup_error() -> None:
    with pytest.raises(LookupError):
        _ = CompatServer("shop").request_context


@ERAS
async def test_version_2_server_runs_on_it_unchanged(threads: HandlerThreads, mode: str) -> None:
    here = threading.get_ident()

    async def on_list_tools(
        ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool("it", output_schema={"type": "object"}, meta={"a": 1})])

    async def on_call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        text = f"{ctx.lifespan_context} {threading.get_ident() == here}"
        return types.CallToolResult(content=[types.TextContent(text=text)], structured_content={})

    @asynccontextmanager
    async def lifespan(_server: Any) -> AsyncIterator[str]:
        yield "open"

    server: Server[Any] = CompatServer(
        "shop",
        version="2",
        title="Shop",
        lifespan=lifespan,
        on_list_tools=on_list_tools,
        on_call_tool=on_call_tool,
    )
    server.handler_threads = threads  # type: ignore[attr-defined]

    async def custom(ctx: ServerRequestContext[Any], params: types.RequestParams) -> dict[str, Any]:
        return {"custom": True}

    server.add_request_handler("shop/custom", types.RequestParams, custom)

    async with connected(server, mode) as client:
        listed = (await client.list_tools()).tools[0]
        result = await client.call_tool("it", {})

    assert (listed.output_schema, listed.meta) == ({"type": "object"}, {"a": 1})
    assert text_of(result) == "open True"
    assert server.title == "Shop"
    assert server.get_request_handler("shop/custom") is not None


def test_version_1_constructor_takes_its_arguments_by_position() -> None:
    server = CompatServer("shop", "1.2", "Buy things.", "https://shop.example", [types.Icon(src="a:b")])
    options = server.create_initialization_options(NotificationOptions(tools_changed=True), {"x": {}})

    assert (options.server_name, options.server_version, options.instructions) == ("shop", "1.2", "Buy things.")
    assert (options.website_url, options.capabilities.experimental) == ("https://shop.example", {"x": {}})
    assert CompatServer[dict, Any] is CompatServer  # type: ignore[misc]


async def test_registry_runs_what_a_decorator_registered() -> None:
    async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
        return await say(f"{name} {arguments}")

    server = server_with_tool(call_tool)
    request = types.CallToolRequest(params=types.CallToolRequestParams(name="it", arguments={"a": 1}))

    result = await server.request_handlers[types.CallToolRequest](request)

    assert result.content[0].text == "it {'a': 1}"
    assert types.ListToolsRequest in server.request_handlers
    assert types.GetPromptRequest not in server.request_handlers
    assert len(server.notification_handlers) == 0


async def test_2026_call_does_not_run_the_listing_first() -> None:
    server = CompatServer("shop")
    listings = 0

    @server.list_tools()
    async def list_tools() -> list[types.Tool]:
        nonlocal listings
        listings += 1
        return [tool("it")]

    assert server.get_tool_input_schema is not None
    assert server.get_tool_input_schema("it") is None
    async with connected(server, "2026-07-28") as client:
        await client.list_tools()

    assert listings == 1
    assert server.get_tool_input_schema("it") == {"type": "object"}


async def test_server_is_not_kept_alive_by_its_threads(threads: HandlerThreads) -> None:
    async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
        return await say("done")

    server = server_with_tool(call_tool, threads)
    async with connected(server) as client:
        await client.call_tool("it", {})
    gone = weakref.ref(server)
    del server, client

    async with asyncio.timeout(5):
        while gone() is not None:  # the thread may still be on its way out of the call
            await asyncio.to_thread(gc.collect)
