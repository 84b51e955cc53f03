"""What is being traced now: for the log, and for requests that go on to commands and remote servers.

This module does not import OpenTelemetry: it is loaded whether or not there is tracing.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Final, Protocol

from gateway.http.asgi import Scope

SCOPE_KEY: Final = "gumcp.trace"
"""Where the ASGI scope of a traced request has its trace."""


class Traced(Protocol):
    """Something with a span."""

    @property
    def trace_id(self) -> str:
        """The id of its trace, in hexadecimal digits; empty while that is not known."""
        ...


class TracedMessage(Traced, Protocol):
    """A message that is being handled."""

    def sending(self, method: str) -> AbstractContextManager[Mapping[str, str]]:
        """Record a request that the handler sends on, for the length of a `with` block.

        Gives the fields that carry the trace to the request's receiver.
        """
        ...


current_message: Final[ContextVar[TracedMessage | None]] = ContextVar("current_message", default=None)
"""The message that is being handled, in a lane; None without tracing."""


def current_trace_id(scope: Scope | None) -> str:
    """The trace of what is done now; empty if there is none. `scope`: of the present request, on the host's loop."""
    traced: Traced | None = current_message.get()
    if traced is None and scope is not None:
        traced = scope.get(SCOPE_KEY)
    return "" if traced is None else traced.trace_id
