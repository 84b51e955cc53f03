"""A factory of one parameter, whatever its name: it gets the user id."""

from mcp.server import MCPServer


def server(name_of_user: str) -> MCPServer:
    instance = MCPServer("factory_of_user", version="1.0")

    @instance.tool()
    def whoami() -> str:
        return name_of_user

    return instance
