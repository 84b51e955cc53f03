"""What of a key's permissions holds inside a server."""

import base64

import pytest
from mcp.shared.inbound import encode_header_value

from gateway.access.grants import Grant, KeyFacts
from gateway.access.limits import RateLimits
from gateway.access.tool_scope import require_named_tool
from gateway.exceptions import ToolOutOfScope
from gateway.identity import Identity

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
