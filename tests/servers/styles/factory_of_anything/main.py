"""A factory that takes whatever it is given, such as one behind a decorator."""

from typing import Any

from mcp.server import MCPServer


def server(*args: Any, **kwargs: Any) -> MCPServer:
    instance = MCPServer("factory_of_anything", version="1.0")

    @instance.tool()
    def whoami() -> str:
        return f"{args} {kwargs}"

    return instance
