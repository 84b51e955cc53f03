"""An `MCPServer` object that all users share."""

from mcp.server import MCPServer

server = MCPServer("mcpserver_object")


@server.tool()
def whoami() -> str:
    return "one of many"
