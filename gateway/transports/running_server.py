"""What a transport needs of an instance: the `Server` object, ready to be driven in its lane."""

from contextvars import Context
from dataclasses import dataclass
from typing import Any

from mcp.server import Server
from mcp.server.models import InitializationOptions

from gateway.lanes import Lane


@dataclass(frozen=True, slots=True)
class RunningServer:
    """One `Server` object whose lifespan has been entered in `lane`."""

    server: Server[Any]
    initialization_options: InitializationOptions
    lifespan_state: Any
    lane: Lane
    context: Context
    """The context variables that message loops run with: who is calling, as the SDK's auth context has it."""
