"""Which tools of a server a key may see and call."""

import base64
from types import SimpleNamespace
from typing import Any, cast

import mcp_types as types
import pytest
from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.shared.inbound import encode_header_value

from gateway.access.grants import Grant, KeyFacts
from gateway.access.identity import Identity, current_identity
from gateway.access.limits import RateLimits
from gateway.access.tool_scope import NOT_THIS_TOOL, ToolScope, require_named_tool, require_tool
from gateway.exceptions import ToolOutOfScope

KEY = "canary-key"


def scoped(*tools: str) -> Identity:
    """The identity of a key that is for these tools of one server."""
    facts = KeyFacts(1, "gumcp_public00", b"", "ada", {"workshop": frozenset(tools)}, None, is_active=True)
    return Identity("ada", KEY, Grant(facts, 0.0, RateLimits({})))


@pytest.mark.parametrize("tool", ["echo", "größe", "測る", " edge ", "=?base64?ZWNobw==?="])
def test_allowed_tool_may_be_called_whatever_its_name(tool: str) -> None:
    require_named_tool(scoped(tool), "workshop", "tools/call", encode_header_value(tool), {})


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
        require_named_tool(scoped("größe", "echo"), "workshop", "tools/call", header, {"id": 1})


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
            await ToolScope("workshop")(ctx, never)
    finally:
        current_identity.reset(token)
    assert (refusal.value.code, refusal.value.message) == (types.INVALID_PARAMS, NOT_THIS_TOOL)
