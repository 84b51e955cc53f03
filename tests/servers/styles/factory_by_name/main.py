"""A factory whose parameters are found by their names: keyword-only, and the key without the user."""

from mcp.server import MCPServer


def server(greeting: str = "key", *, api_key: str | None) -> MCPServer:
    instance = MCPServer("factory_by_name", version="1.0")

    @instance.tool()
    def whoami() -> str:
        return f"{greeting} {api_key}"

    return instance
