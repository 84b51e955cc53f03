"""An object of a usual name, in a file that can also be run directly, with a module of its own beside it."""

import answers
from mcp.server import MCPServer

mcp = MCPServer("object_called_mcp", version="1.0")


@mcp.tool()
def whoami() -> str:
    return answers.WHOAMI


if __name__ == "__main__":
    mcp.run()
