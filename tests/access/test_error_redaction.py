"""A caller's key is in no error of a server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.server import Server
from mcp.server.context import ServerRequestContext

from gateway.access.error_redaction import redact_errors
from gateway.access.identity import Identity, current_identity

KEY = "canary-key"


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
    server.middleware.append(redact_errors)
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
