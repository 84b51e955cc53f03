"""Version 1's exceptions. Those that version 2 has as well are the same classes."""

from mcp.server.mcpserver.exceptions import InvalidSignature, MCPServerError, ResourceError, ToolError

FastMCPError = MCPServerError


class ValidationError(FastMCPError):
    """Parameters or a result are not valid."""


__all__ = ["FastMCPError", "InvalidSignature", "ResourceError", "ToolError", "ValidationError"]
