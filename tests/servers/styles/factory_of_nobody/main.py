"""A factory without parameters: every user gets an instance of their own, and it does not know whose it is."""

from mcp.server import MCPServer


def server() -> MCPServer:
    instance = MCPServer("factory_of_nobody", version="1.0")

    @instance.tool()
    def whoami() -> str:
        return "nobody"

    return instance
