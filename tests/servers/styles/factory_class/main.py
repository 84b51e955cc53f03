"""A class as the factory: one object of it for each user."""

from mcp.server import MCPServer


class WhoamiServer(MCPServer):
    def __init__(self, user_id: str, api_key: str | None = None) -> None:
        super().__init__("factory_class", version="1.0")
        self.user_id = user_id
        self.add_tool(self.whoami)

    def whoami(self) -> str:
        return self.user_id


server = WhoamiServer
