"""Which tools of a server a key may see and call, and how often it may call: SDK middleware, on every transport.

Not here: which servers a key is for (`authenticator`), time limits and counts of a server's calls
(`gateway.instances.calls`).
"""

from collections.abc import Callable
from typing import Any, Final

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import decode_header_value
from mcp_types import INVALID_PARAMS, JSONRPCRequest

from gateway.access.identity import Identity, current_identity
from gateway.exceptions import ToolOutOfScope
from gateway.jsonrpc import is_request_id
from gateway.tool_results import error_result

NOT_THIS_TOOL: Final = "This key may not call that tool."


class ToolScope:
    """Middleware: holds the requests of one server to what their caller's key allows."""

    def __init__(
        self, server_name: str, note_refusal: Callable[[Identity, object, str], object] = lambda *arguments: None
    ) -> None:
        """`note_refusal` is called with the caller, the name of the tool and the reason for operators."""
        self._server_name = server_name
        self._note_refusal = note_refusal

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Handle one message. Raises `MCPError` for a tool that the key may not call."""
        # The identity of this request: several identities may share one server.
        identity = current_identity.get()
        grant = None if identity is None else identity.grant
        if identity is None or grant is None:
            return await call_next(ctx)
        if ctx.method == "tools/call":
            tools, name = grant.allowed_tools(self._server_name), (ctx.params or {}).get("name")
            if not _is_within(tools, name):
                self._note_refusal(identity, name, f"out_of_scope: {ToolOutOfScope.note_for_operators}")
                raise MCPError(code=INVALID_PARAMS, message=NOT_THIS_TOOL)
            limits, key = grant.limits, grant.public
            if (
                not limits.spend_at_once("calls of a key", key)
                and (seconds := await limits.spend("calls of a key", key)) is not None
            ):
                self._note_refusal(identity, name, "rate_limit: the limit of calls of a key is used up")
                return error_result(ctx, f"Too many calls with this key. Try again in {seconds} seconds.")
        result = await call_next(ctx)
        if ctx.method == "tools/list" and isinstance(result, dict):
            return _without_other_tools(result, grant.allowed_tools(self._server_name))
        return result


def require_tool(identity: Identity, server_name: str, message: object) -> None:
    """Check, before a message reaches the server, that it calls no tool outside the key's scope.

    At this point the request can still be answered with 403.

    Raises:
        ToolOutOfScope
    """
    if identity.grant is None or not isinstance(message, JSONRPCRequest) or message.method != "tools/call":
        return
    tools, name = identity.grant.allowed_tools(server_name), (message.params or {}).get("name")
    if not _is_within(tools, name):
        raise _out_of_scope(name, message.id)


def require_named_tool(
    identity: Identity, server_name: str, method: str | None, name: str | None, message: object
) -> None:
    """Check the same for a stateless request, by its headers (2026-07-28 Mcp-Method, Mcp-Name).

    If the headers differ from the body, the SDK refuses the request. The middleware reads the body.

    Raises:
        ToolOutOfScope
    """
    if identity.grant is None or method != "tools/call":
        return
    tools, tool = identity.grant.allowed_tools(server_name), _decoded(name)
    if not _is_within(tools, tool):
        request_id = message.get("id") if isinstance(message, dict) else None
        raise _out_of_scope(tool, request_id if is_request_id(request_id) else None)


def _out_of_scope(tool: object, request_id: str | int | None) -> ToolOutOfScope:
    error = ToolOutOfScope(NOT_THIS_TOOL, INVALID_PARAMS, request_id)
    error.tool = tool if isinstance(tool, str) else ""
    return error


def _decoded(name: str | None) -> str | None:
    """The tool name in the value of a header (names beyond ASCII are written in base64), or None if it is malformed."""
    try:
        return decode_header_value(name)
    except ValueError:  # mcp 2.3 lets base64's error for characters beyond ASCII through
        return None


def _is_within(tools: frozenset[str] | None, name: object) -> bool:
    """Whether a tool of this name may be called. A client may send any JSON value as the name."""
    return tools is None or (isinstance(name, str) and name in tools)


def _without_other_tools(result: dict[str, Any], tools: frozenset[str] | None) -> dict[str, Any]:
    if tools is None or not isinstance(result.get("tools"), list):
        return result
    return {**result, "tools": [tool for tool in result["tools"] if _is_within(tools, tool.get("name"))]}
