"""What of a key's permissions holds inside a server: SDK middleware around every request, on every transport.

Lives here: which tools a key may see and call, how often it may call, and that no error says the key. The last holds in
open mode too. Not here: time limits and counts of the server (`gateway.instances.calls`).
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

import pydantic_core
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import decode_header_value
from mcp_types import INVALID_PARAMS, JSONRPCRequest

from gateway.access.identity import Identity, current_identity
from gateway.access.redaction import redact
from gateway.exceptions import ToolOutOfScope
from gateway.tool_results import error_result

NOT_THIS_TOOL: Final = "This key is not for that tool."

_KEPT_FIELDS: Final = frozenset({"annotations", "blob", "data", "mimeType", "resultType", "type"})
"""Fields of a result that hold the protocol's words or encoded bytes: in open mode a key may look like either."""


class KeyInError(Exception):
    """A handler raised something whose text says its caller's key; this one's text does not."""


class AccessMiddleware:
    """Holds the requests of one server to what their caller's key allows."""

    def __init__(self, server_name: str) -> None:
        self._server_name = server_name

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Handle one message. Raises what the handler raises, `MCPError` for a tool out of scope."""
        # Not bound to the middleware: several identities may share a server.
        identity = current_identity.get()
        if identity is None:
            return await call_next(ctx)
        grant = identity.grant
        if grant is not None and ctx.method == "tools/call":
            tools = grant.allowed_tools(self._server_name)
            if not _is_within(tools, (ctx.params or {}).get("name")):
                raise MCPError(code=INVALID_PARAMS, message=NOT_THIS_TOOL)
            seconds = await grant.limits.spend("calls of a key", grant.public)
            if seconds is not None:
                return error_result(ctx, f"Too many calls with this key. Try again in {seconds} seconds.")
        try:
            result = await call_next(ctx)
        except Exception as error:
            # Clients show it, log it and give it to models: an error never says the key.
            text = str(error)
            redacted = redact(text, identity.api_key)
            if isinstance(error, MCPError):
                data = _redacted(error.data, identity.api_key)
                if redacted == text and data == error.data:
                    raise
                raise MCPError(code=error.code, message=redacted, data=data) from error
            if redacted == text:
                raise
            raise KeyInError(redacted) from error
        if isinstance(result, dict):
            if grant is not None and ctx.method == "tools/list":
                return _within(result, grant.allowed_tools(self._server_name))
            if identity.api_key and result.get("isError"):
                return _without_key(result, identity.api_key)
        return result


def require_tool(identity: Identity, server_name: str, message: object) -> None:
    """Check at the door that `message` calls no tool which the key is not for: there it can still be answered 403.

    Raises:
        ToolOutOfScope
    """
    if identity.grant is None or not isinstance(message, JSONRPCRequest) or message.method != "tools/call":
        return
    tools = identity.grant.allowed_tools(server_name)
    if not _is_within(tools, (message.params or {}).get("name")):
        raise ToolOutOfScope(NOT_THIS_TOOL, INVALID_PARAMS, message.id)


def require_named_tool(identity: Identity, server_name: str, method: str | None, name: str | None, body: bytes) -> None:
    """The same for a stateless request, which names its tool in its head (2026-07-28 Mcp-Method, Mcp-Name).

    A head that says something else than the body is the SDK's to refuse; the middleware reads the body.

    Raises:
        ToolOutOfScope
    """
    if identity.grant is None or method != "tools/call":
        return
    tools = identity.grant.allowed_tools(server_name)
    if not _is_within(tools, _decoded(name)):
        try:
            request_id = pydantic_core.from_json(body)["id"]
        except (ValueError, TypeError, KeyError):
            request_id = None
        is_id = isinstance(request_id, str | int) and not isinstance(request_id, bool)
        raise ToolOutOfScope(NOT_THIS_TOOL, INVALID_PARAMS, request_id if is_id else None)


def _decoded(name: str | None) -> str | None:
    """The tool that the value of a header names: names beyond ASCII come in base64. None for what is none."""
    try:
        return decode_header_value(name)
    except ValueError:  # mcp 2.3 lets out what base64 says of characters beyond ASCII
        return None


def _is_within(tools: frozenset[str] | None, name: object) -> bool:
    """Whether a tool of this name may be called. A client may send any JSON value as the name."""
    return tools is None or (isinstance(name, str) and name in tools)


def _within(result: dict[str, Any], tools: frozenset[str] | None) -> dict[str, Any]:
    if tools is None or not isinstance(result.get("tools"), list):
        return result
    return {**result, "tools": [tool for tool in result["tools"] if _is_within(tools, tool.get("name"))]}


def _without_key(result: dict[str, Any], api_key: str) -> dict[str, Any]:
    return {
        name: value if name in _KEPT_FIELDS else _redacted(value, api_key, _KEPT_FIELDS if name == "content" else ())
        for name, value in result.items()
    }


def _redacted(value: Any, api_key: str | None, kept: Collection[str] = ()) -> Any:
    """A JSON value without the key, wherever it stands in it; of objects the fields in `kept` stay as they are."""
    if isinstance(value, str):
        return redact(value, api_key)
    if isinstance(value, Mapping):
        return {
            redact(name, api_key) if isinstance(name, str) and not kept else name: (
                part if name in kept else _redacted(part, api_key, kept)
            )
            for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redacted(part, api_key, kept) for part in value]
    return value
