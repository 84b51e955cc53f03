"""An object that can be called as the factory: it keeps what all users share."""

from itertools import count

from mcp.server import MCPServer


class Instances:
    def __init__(self) -> None:
        self.numbers = count(1)

    def __call__(self, user_id: str, api_key: str | None = None) -> MCPServer:
        number = next(self.numbers)
        instance = MCPServer("factory_object", version="1.0")

        @instance.tool()
        def whoami() -> str:
            return f"{user_id}, number {number}"

        return instance


server = Instances()
