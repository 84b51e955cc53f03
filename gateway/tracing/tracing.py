"""What traces one process: it wraps endpoints, gives instances their middleware, and stops with the host."""

from collections.abc import Callable
from typing import Any, Final

from opentelemetry.trace import TracerProvider

from gateway import __version__
from gateway.http.asgi import AsgiApplication, Scope
from gateway.tracing.facts import FindFacts
from gateway.tracing.messages import MessageTracing
from gateway.tracing.requests import TracedEndpoint, trace_of

TRACER: Final = "gumcp"


class Tracing:
    """The tracing of one host. A host without tracing has None in its place."""

    def __init__(self, provider: TracerProvider, stop: Callable[[float], object] = lambda seconds: None) -> None:
        """`stop` exports what is left, in about as many seconds as it is given."""
        self._tracer = provider.get_tracer(TRACER, __version__)
        self.stop = stop

    def endpoint(self, application: AsgiApplication, route: str, find_facts: FindFacts) -> AsgiApplication:
        """Return `application` with a span for each request. `route`: see `TracedEndpoint`."""
        return TracedEndpoint(application, self._tracer, route, find_facts)

    def note_message(self, scope: Scope, message: Any) -> None:
        """Tell the trace of a request what its client posted, before that reaches a lane."""
        trace = trace_of(scope)
        if trace is not None:
            trace.note_message(message)

    def middleware(
        self, server_name: str, tool_label: Callable[[object], str], call_outcome: Callable[[], str]
    ) -> MessageTracing:
        """SDK middleware with a span for each message. For the arguments see `MessageTracing`."""
        return MessageTracing(self._tracer, server_name, tool_label, call_outcome)
