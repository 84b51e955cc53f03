"""Version 1's tools: functions with a schema, called on the event loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mcp.server.mcpserver.tools.base import Tool as Version2Tool
from mcp.shared.exceptions import UrlElicitationRequiredError
from mcp_types import CallToolResult

from gateway.compat.fastmcp.exceptions import ToolError
from gateway.compat.loop_threads import explained

logger = logging.getLogger(__name__)


class Tool(Version2Tool):
    """A tool."""

    async def run(self, arguments: dict[str, Any], context: Any = None, convert_result: bool = False) -> Any:
        """Call the function. With `convert_result`, return its result as content, or as content and structured content.

        Raises:
            ToolError: the arguments are not valid, or the function raised something. It has the exception's text.
        """
        try:
            values = self.fn_metadata.validate_arguments(arguments)
            if self.context_kwarg is not None:
                values[self.context_kwarg] = context
            result = self.fn(**values)
            if self.is_async:
                result = await result
            return self._converted(result) if convert_result else result
        except UrlElicitationRequiredError:
            raise
        except Exception as error:
            raise ToolError(f"Error executing tool {self.name}: {explained(error)}") from error

    def _converted(self, result: Any) -> Any:
        converted = self.fn_metadata.convert_result(result)
        if not isinstance(converted, CallToolResult) or isinstance(result, CallToolResult):
            return converted
        if converted.structured_content is None:
            return converted.content
        return converted.content, converted.structured_content


class ToolManager:
    """The tools of a server, by name."""

    def __init__(self, warn_on_duplicate_tools: bool = True, *, tools: list[Tool] | None = None) -> None:
        self.warn_on_duplicate_tools = warn_on_duplicate_tools
        self._tools: dict[str, Tool] = {tool.name: tool for tool in tools or ()}

    def get_tool(self, name: str) -> Tool | None:
        """Return the tool of this name."""
        return self._tools.get(name)

    def list_tools(self) -> list[Tool]:
        """Return all tools."""
        return list(self._tools.values())

    def add_tool(self, fn: Callable[..., Any], **described: Any) -> Tool:
        """Add a function as a tool, and return it. The first of two tools of one name stays."""
        tool = Tool.from_function(fn, **described)
        assert isinstance(tool, Tool)
        if tool.name in self._tools and self.warn_on_duplicate_tools:
            logger.warning("Tool already exists: %s", tool.name)
        return self._tools.setdefault(tool.name, tool)

    def remove_tool(self, name: str) -> None:
        """Remove a tool. Raises ToolError if there is none of this name."""
        if name not in self._tools:
            raise ToolError(f"Unknown tool: {name}")
        del self._tools[name]

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Any = None, convert_result: bool = False
    ) -> Any:
        """Call a tool, as `Tool.run` does. Raises ToolError if there is none of this name."""
        tool = self._tools.get(name)
        if tool is None:
            raise ToolError(f"Unknown tool: {name}")
        return await tool.run(arguments, context, convert_result)
