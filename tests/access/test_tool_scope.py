"""What of a key's permissions holds inside a server."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.shared.inbound import encode_header_value

from gateway.access.grants import Grant, KeyFacts
from gateway.access.identity import Identity, current_identity
from gateway.access.limits import RateLimits
from gateway.access.tool_scope import NOT_THIS_TOOL, AccessMiddleware, require_named_tool, require_tool
from gateway.exceptions import ToolOutOfScope

KEY = "canary-key"


def scoped(*tools: str) -> Identity:
    """The identity of a key that is for these tools of one server."""
    facts = KeyFacts(1, "gumcp_public00", b"", "ada", {"workshop": frozenset(tools)}, None, is_active=True)
    return Identity("ada", KEY, Grant(facts, 0.0, RateLimits({})))


@pytest.mark.parametrize("tool", ["echo", "größe", "測る", " edge ", "=?base64?ZWNobw==?="])
def test_allowed_tool_may_be_called_whatever_its_name(tool: str) -> None:
    require_named_tool(scoped(tool), "workshop", "tools/call", encode_header_value(tool), b"{}")


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(None, id="absent"),
        pytest.param("other", id="another tool"),
        pytest.param(encode_header_value("größer"), id="another tool, encoded"),
        pytest.param("=?base64?!?=", id="no base64"),
        pytest.param("=?base64?größe?=", id="no ASCII"),
        pytest.param("=?base64?/w==?=", id="no UTF-8"),
        pytest.param(f"=?base64?{base64.b64encode('größe'.encode()).decode()}", id="cut"),
    ],
)
def test_name_in_the_head_that_is_no_allowed_tools_is_refused(header: str | None) -> None:
    with pytest.raises(ToolOutOfScope):
        require_named_tool(scoped("größe", "echo"), "workshop", "tools/call", header, b'{"id": 1}')


NO_NAMES: list[Any] = [[], {}, ["echo"], None, 1, True]


@pytest.mark.parametrize("name", NO_NAMES)
def test_call_whose_name_is_no_text_is_refused_at_the_door(name: Any) -> None:
    message = types.JSONRPCRequest(jsonrpc="2.0", id=7, method="tools/call", params={"name": name})
    with pytest.raises(ToolOutOfScope):
        require_tool(scoped("echo"), "workshop", message)


@pytest.mark.parametrize("name", NO_NAMES)
async def test_call_whose_name_is_no_text_is_refused_inside_the_server(name: Any) -> None:
    async def never(ctx: ServerRequestContext[Any, Any]) -> Any:
        raise AssertionError("the handler was called")

    ctx = cast("ServerRequestContext[Any, Any]", SimpleNamespace(method="tools/call", params={"name": name}))
    token = current_identity.set(scoped("echo"))
    try:
        with pytest.raises(MCPError) as refusal:
            await AccessMiddleware("workshop")(ctx, never)
    finally:
        current_identity.reset(token)
    assert (refusal.value.code, refusal.value.message) == (types.INVALID_PARAMS, NOT_THIS_TOOL)


SAID = {"key": KEY, "parts": [f"with {KEY}", {KEY: [1, None, True]}], "name": "ada"}
UNSAID = {"key": "[redacted]", "parts": ["with [redacted]", {"[redacted]": [1, None, True]}], "name": "ada"}


async def _leak(
    ctx: ServerRequestContext[Any], params: types.CallToolRequestParams
) -> types.CallToolResult | types.ErrorData:
    if params.name == "raise":
        raise MCPError(code=-32001, message="no", data=SAID)
    if params.name == "raise with a message":
        raise MCPError(code=-32001, message=f"no {KEY}", data={"code": 7})
    content: list[types.ContentBlock] = [
        types.TextContent(text=f"no {KEY}", annotations=types.Annotations(audience=["user"])),
        types.EmbeddedResource(
            resource=types.TextResourceContents(uri=f"x:{KEY}", mime_type="text/plain", text=f"no {KEY}")
        ),
        types.ImageContent(data="dGV4dA==", mime_type="image/png"),
    ]
    is_error = params.name == "fail"
    return types.CallToolResult(content=content, structured_content=SAID, is_error=is_error)


async def _list(ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[])


@asynccontextmanager
async def client_of(key: str) -> AsyncIterator[Client]:
    """A client with this key of a server whose tools say `KEY`."""
    server = Server("leaky", on_list_tools=_list, on_call_tool=_leak)
    server.middleware.append(AccessMiddleware("leaky"))
    token = current_identity.set(Identity("ada", key))
    try:
        async with Client(server) as client:
            yield client
    finally:
        current_identity.reset(token)


async def call(tool: str, key: str = KEY) -> types.CallToolResult:
    async with client_of(key) as client:
        return await client.call_tool(tool)


async def test_error_result_says_the_key_nowhere() -> None:
    result = await call("fail")
    assert KEY not in result.model_dump_json()
    assert result.structured_content == UNSAID
    assert [item.type for item in result.content] == ["text", "resource", "image"]


async def test_result_that_is_no_error_is_the_handlers_own() -> None:
    assert (await call("succeed")).structured_content == SAID


@pytest.mark.parametrize("key", ["text", "user", "data", "image/png", "dGV4", "content", "complete"])
async def test_key_that_looks_like_a_word_of_the_protocol_breaks_no_result(key: str) -> None:
    content = (await call("fail", key)).content
    assert [item.type for item in content] == ["text", "resource", "image"]


async def test_data_of_an_error_does_not_say_the_key_whatever_its_message_says() -> None:
    async with client_of(KEY) as client:
        with pytest.raises(MCPError) as error:
            await client.call_tool("raise")
        assert (error.value.code, error.value.message, error.value.data) == (-32001, "no", UNSAID)
        with pytest.raises(MCPError) as error:
            await client.call_tool("raise with a message")
        assert (error.value.code, error.value.message, error.value.data) == (-32001, "no [redacted]", {"code": 7})
