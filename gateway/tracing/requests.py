"""The span of one HTTP request to an MCP route, made on the host's loop.

A request continues the trace that its headers name. If they name none, it continues the one that its message names in
`_meta`, which is known once the body has been read; its span begins at its arrival all the same.
"""

import asyncio
import time
from typing import Any, Final

from opentelemetry.trace import (
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
)

from gateway.http.asgi import AsgiApplication, Message, Receive, Scope, Send
from gateway.http.request_ids import request_id
from gateway.http.requests import KNOWN_METHODS
from gateway.tracing.current import SCOPE_KEY
from gateway.tracing.facts import FindFacts
from gateway.tracing.trace_context import context_below, from_headers, from_message

CLIENT_CLOSED: Final = 499
"""The status of a request whose client left before the response, as proxies write it."""


class RequestTrace:
    """One request, its span and what it continues."""

    def __init__(self, tracer: Tracer, scope: Scope, route: str) -> None:
        self._tracer = tracer
        self._method = _method(scope)
        self._route = route
        self._started_ns = time.time_ns()
        self._span: Span | None = None
        parent = from_headers(scope["headers"])
        if parent is not None:
            self._start(parent)

    def note_message(self, message: Any) -> None:
        """Note what the client posted: its decoded JSON. It is called before the message reaches a lane."""
        if self._span is None:
            self._start(from_message(message))

    @property
    def span(self) -> Span:
        """The request's span. It starts with this call at the latest."""
        return self._span or self._start(None)

    @property
    def trace_id(self) -> str:
        """The id of the trace; empty until the span has started."""
        return "" if self._span is None else format_trace_id(self._span.get_span_context().trace_id)

    def _start(self, parent: SpanContext | None) -> Span:
        attributes = {"http.request.method": self._method, "http.route": self._route}
        self._span = self._tracer.start_span(
            f"{self._method} {self._route}",
            context_below(parent),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=self._started_ns,
            record_exception=False,
            set_status_on_exception=False,
        )
        return self._span


class TracedEndpoint:
    """An ASGI application whose requests have a span each."""

    def __init__(self, application: AsgiApplication, tracer: Tracer, route: str, find_facts: FindFacts) -> None:
        """`route` is the form of the paths. Requests with their key in a header have none in their path."""
        self._application = application
        self._tracer = tracer
        self._route = route
        self._find_facts = find_facts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        has_key = "session_key" in scope["url_route"]["kwargs"]
        route = self._route if has_key else self._route.replace("/{session_key}", "")
        trace = scope[SCOPE_KEY] = RequestTrace(self._tracer, scope, route)
        start: Message | None = None
        failure = ""

        async def send_watched(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
            await send(message)

        try:
            await self._application(scope, receive, send_watched)
        except BaseException as error:  # cancellation, too
            failure = type(error).__qualname__
            raise
        finally:
            span = trace.span
            if span.is_recording():
                self._describe(span, scope, start, failure)
            span.end()

    def _describe(self, span: Span, scope: Scope, start: Message | None, failure: str) -> None:
        facts = self._find_facts(scope, start)
        if start is not None:
            status = start["status"]
        else:
            status = CLIENT_CLOSED if failure in ("", asyncio.CancelledError.__qualname__) else 500
        found = {
            "url.scheme": scope.get("scheme", "http"),
            "http.response.status_code": status,
            "gumcp.server": facts.server_name,
            "gumcp.transport": facts.transport,
            "mcp.protocol.version": facts.protocol_version,
            "gumcp.request_id": request_id(scope["headers"]),
        }
        span.set_attributes({name: value for name, value in found.items() if value})
        if status >= 500:
            span.set_attribute("error.type", failure or str(status))
            span.set_status(StatusCode.ERROR)


def _method(scope: Scope) -> str:
    """The HTTP method, or what stands for one that is unknown: clients choose it."""
    method = str(scope["method"])
    # OpenTelemetry's convention for all others.
    return method if method in KNOWN_METHODS else "_OTHER"


def trace_of(scope: Scope) -> RequestTrace | None:
    """The trace of the request with this scope, if it has one."""
    found: RequestTrace | None = scope.get(SCOPE_KEY)
    return found
