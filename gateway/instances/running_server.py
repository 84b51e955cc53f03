"""What a transport needs of an instance: the `Server` object, ready to be driven in its lane."""

from contextvars import Context
from dataclasses import dataclass
from typing import Any, Protocol

from mcp.server import Server
from mcp.server.models import InitializationOptions

from gateway.instances.lanes import Lane


class ToolSchemaCache(Protocol):
    """Knows the input schemas of a server's tools."""

    async def prepare(self, name: str) -> None:
        """Make sure that the schema of tool `name` is known, if there is one."""


@dataclass(slots=True)
class RunningServer:
    """One server whose lifespan has been entered in `lane`.

    New code, and a lifespan in place of one that ended by itself, change its options, its state and its schemas.
    """

    server: Server[Any]
    initialization_options: InitializationOptions
    lifespan_state: Any
    schemas: ToolSchemaCache
    lane: Lane
    context: Context
    """The context variables that message loops run with: who is calling, as the SDK's auth context has it."""
