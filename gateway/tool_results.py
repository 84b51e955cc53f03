"""Results of tools that the host gives itself, in place of a handler."""

from typing import Any

from mcp.server.context import ServerRequestContext
from mcp_types.version import MODERN_PROTOCOL_VERSIONS


def error_result(ctx: ServerRequestContext[Any, Any], text: str) -> dict[str, Any]:
    """A tool's error result in wire form: middleware that answers by itself owns the whole envelope (mcp 2.3)."""
    result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": True}
    if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
        # Spec 2026-07-28: resultType is required of every result.
        result["resultType"] = "complete"
    return result
