"""A factory that makes a `FastMCP` of the FastMCP package for each user. Needs `pip install fastmcp`."""

from typing import Any

from fastmcp import FastMCP


def server(user_id: str, api_key: str | None = None) -> FastMCP[Any]:
    instance: FastMCP[Any] = FastMCP("fastmcp_factory", version="1.0")

    @instance.tool
    def whoami() -> str:
        return f"{user_id} with {api_key}"

    return instance
