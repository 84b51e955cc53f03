"""Which MCP request is being answered: what a refusal is recorded with."""

from contextvars import ContextVar
from typing import Final, NamedTuple

from gateway.http.asgi import Scope


class CurrentRequest(NamedTuple):
    """An MCP request, from its arrival on."""

    server_name: str
    """As the client wrote it."""
    scope: Scope


current_request: Final[ContextVar[CurrentRequest | None]] = ContextVar("current_request", default=None)
"""The request that is being answered, on the host's loop."""
