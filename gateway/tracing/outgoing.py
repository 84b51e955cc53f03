"""How requests to commands and remote servers find the trace that they belong to.

This module does not import OpenTelemetry: it is loaded whether or not there is tracing.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Final, Protocol


class OutgoingTracing(Protocol):
    """Makes spans for requests that are sent on."""

    def sending(self, method: str) -> AbstractContextManager[Mapping[str, str]]:
        """Record a request for the length of a `with` block. Gives the fields that carry the trace to its receiver."""
        ...


outgoing_tracing: Final[ContextVar[OutgoingTracing | None]] = ContextVar("outgoing_tracing", default=None)
"""What traces the requests that the handler of the present message sends on; None without tracing."""
