"""Version 1's FastMCP beyond what the comparison with mcp 1.28 shows: threads, the host's part, and what fails how."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from mcp import Client

from gateway.catalog.factories import make
from gateway.catalog.styles import UnusableServer, describe
from gateway.compat.detection import is_written_for_version_1
from gateway.compat.fastmcp.context import Context
from gateway.compat.fastmcp.server import FastMCP
from gateway.compat.handler_threads import HandlerThreads
from gateway.compat.imports import import_sdk


@pytest.fixture
def threads() -> Iterator[HandlerThreads]:
    pool = HandlerThreads("shop", limit=4)
    yield pool
    pool.close(join_seconds=5)


def connected(server: FastMCP, threads: HandlerThreads | None = None) -> Client:
    server._mcp_server.handler_threads = threads
    return Client(server._mcp_server, cache=None, read_timeout_seconds=10)


def text_of(result: Any) -> str:
    return "\n".join(block.text for block in result.content)


async def test_plain_function_that_blocks_delays_neither_the_lane_nor_other_calls(threads: HandlerThreads) -> None:
    gate, started = threading.Event(), threading.Event()
    server = FastMCP("shop")

    @server.tool()
    def block() -> str:
        started.set()
        assert gate.wait(10)
        return f"on {threading.current_thread().name}"

    @server.tool()
    def quick() -> str:
        return f"on {threading.current_thread().name}"

    async with asyncio.timeout(10), connected(server, threads) as client:
        home = text_of(await client.call_tool("quick", {}))
        blocked = asyncio.create_task(client.call_tool("block", {}))
        assert await asyncio.to_thread(started.wait, 5)
        spilled = text_of(await client.call_tool("quick", {}))
        gate.set()
        assert text_of(await blocked) == home
    assert home != spilled
    assert threading.current_thread().name not in (home, spilled)


async def test_what_a_call_beside_the_loop_cannot_use_is_named_in_its_error(threads: HandlerThreads) -> None:
    gate, started = threading.Event(), threading.Event()
    server = FastMCP("shop")
    shared: list[asyncio.Future[None]] = []

    @server.tool()
    async def block() -> str:
        shared.append(asyncio.get_running_loop().create_future())
        started.set()
        assert gate.wait(10)
        return "done"

    @server.tool()
    async def use() -> str:
        await shared[0]
        return "used"

    async with asyncio.timeout(10), connected(server, threads) as client:
        blocked = asyncio.create_task(client.call_tool("block", {}))
        assert await asyncio.to_thread(started.wait, 5)
        result = await client.call_tool("use", {})
        gate.set()
        await blocked
    assert result.is_error
    assert text_of(result).startswith("Error executing tool use: This belongs to another event loop.")


async def test_failing_tool_is_logged_with_the_line_of_the_author(caplog: pytest.LogCaptureFixture) -> None:
    server = FastMCP("shop")

    @server.tool()
    def fail() -> str:
        raise LookupError("sesame")

    with caplog.at_level(logging.INFO):
        async with connected(server) as client:
            assert text_of(await client.call_tool("fail", {})) == "Error executing tool fail: sesame"
    line = fail.__code__.co_firstlineno + 2
    assert f"Tool 'fail' failed with LookupError at compat/test_fastmcp.py, line {line}" in caplog.text
    assert "sesame" not in caplog.text


def test_run_leaves_serving_to_the_host(caplog: pytest.LogCaptureFixture) -> None:
    server = FastMCP("shop")
    server.run()
    server.run(transport="streamable-http")
    assert caplog.text.count("run() of server 'shop' does nothing: the host serves it") == 2


def test_settings_of_version_1_are_accepted_and_can_be_set() -> None:
    server = FastMCP("shop", "Buy.", host="0.0.0.0", port=1, stateless_http=True, json_response=True, debug=True)
    server.settings.port = 2
    assert (server.settings.host, server.settings.port, server.instructions) == ("0.0.0.0", 2, "Buy.")
    with pytest.raises(TypeError, match="nonsense"):
        FastMCP("shop", nonsense=True)
    assert server.streamable_http_app().routes == server.sse_app().routes == []


@pytest.mark.parametrize("decorator", ["tool", "prompt", "resource"])
def test_decorator_that_was_not_called_says_so(decorator: str) -> None:
    with pytest.raises(TypeError, match=f"Did you forget to call it\\? Use @{decorator}\\("):
        getattr(FastMCP("shop"), decorator)(lambda: None)


def test_resource_whose_parameters_do_not_fit_its_uri_is_refused() -> None:
    with pytest.raises(ValueError, match="Mismatch between URI parameters"):

        @FastMCP("shop").resource("shop://{shelf}")
        def item(number: int) -> str:
            return ""


async def test_the_first_of_two_with_one_name_stays(caplog: pytest.LogCaptureFixture) -> None:
    server = FastMCP("shop")
    for answer in ("first", "second"):
        server.add_tool(lambda answer=answer: answer, name="it")
        server.prompt("it")(lambda answer=answer: answer)
        server.resource("shop://it", name="it")(lambda: "x")
    assert [tool.name for tool in await server.list_tools()] == ["it"]
    assert (await server.call_tool("it", {}))[0].text == "first"
    assert caplog.text.count("already exists") == 3
    server.remove_tool("it")
    assert await server.list_tools() == []


async def test_context_outside_of_a_request_says_so() -> None:
    with pytest.raises(ValueError, match="outside of a request"):
        await FastMCP("shop").get_context().info("hello")
    with pytest.raises(ValueError, match="outside of a request"):
        _ = Context().fastmcp


def module_with(**names: Any) -> ModuleType:
    module = ModuleType("a_module")
    module.__dict__.update(names)
    return module


async def test_object_called_mcp_is_served_without_options() -> None:
    server = FastMCP("shop")
    style = describe(module_with(FastMCP=FastMCP, mcp=server))
    assert style.is_shared
    made, options = await make(style, "maria", None)
    assert made is server._mcp_server
    assert options.server_name == "shop"
    assert options.capabilities.tools is not None


async def test_factory_of_fastmcp_objects_makes_one_for_each_user() -> None:
    def create_server(user_id: str, api_key: str | None = None) -> FastMCP:
        return FastMCP(f"shop of {user_id}")

    create_server.__module__ = "a_module"
    style = describe(module_with(FastMCP=FastMCP, server=create_server))
    assert style.is_version_1
    made, options = await make(style, "maria", None)
    assert made.name == options.server_name == "shop of maria"


def test_class_itself_is_not_taken_for_a_factory() -> None:
    with pytest.raises(UnusableServer, match="server is the class FastMCP"):
        describe(module_with(FastMCP=FastMCP, server=FastMCP))


def test_module_that_imports_fastmcp_of_version_1_is_one_of_version_1() -> None:
    fastmcp = import_sdk("mcp.server.fastmcp", ("FastMCP",))
    assert is_written_for_version_1(module_with(FastMCP=fastmcp.FastMCP))
    assert not is_written_for_version_1(module_with(MCPServer=import_sdk("mcp.server", ("MCPServer",)).MCPServer))
