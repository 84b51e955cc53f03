"""Where the servers of this project get their credentials from."""

from mcp.shared.exceptions import McpError
from mcp.types import ErrorData


class LocalAuthClient:
    def __init__(self, api_key: str | None = None) -> None:
        self.api_key = api_key

    def get_user_credentials(self, service_name: str, user_id: str) -> dict[str, str]:
        if user_id == "stranger":
            raise McpError(ErrorData(code=-32001, message=f"{user_id} has not connected {service_name}"))
        return {"token": f"{service_name}-token-of-{user_id}"}


def create_auth_client(api_key: str | None = None) -> LocalAuthClient:
    return LocalAuthClient(api_key)
