"""The span of one MCP message, made in the server's lane as SDK middleware.

It takes the place of the SDK's `OpenTelemetryMiddleware` (mcp 2.3): same name, kind and attributes, with these
differences. It comes before the host's own middleware, so its span has the time limits and refusals in it. It continues
the span of the HTTP request. It keeps no texts of exceptions and no names that clients can choose.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS
from mcp_types.methods import SPEC_CLIENT_METHODS
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    use_span,
)
from pydantic import ValidationError

from gateway.tracing.current import current_message
from gateway.tracing.requests import trace_of
from gateway.tracing.trace_context import as_fields, context_below, from_meta

TOOL_CALL: Final = "tools/call"

OTHER_METHOD: Final = "(other)"
"""Stands for a method that the protocol does not define."""

MAX_ID_LENGTH: Final = 20
"""The longest request id in a span, in digits."""

REFUSED: Final = "refused"
"""The outcome of a tool call that the host refused before the server saw it."""

HOST_OUTCOMES: Final = frozenset({REFUSED, "timeout"})
"""Outcomes that the host decides on. They are types of errors, too."""


class MessageTracing:
    """Middleware: makes a span for each message to one server. Used in the lane."""

    def __init__(
        self,
        tracer: Tracer,
        server_name: str,
        tool_label: Callable[[object], str],
        call_outcome: Callable[[], str],
    ) -> None:
        """`tool_label` returns the name of a tool that the server lists, and a fixed text for any other.

        `call_outcome` returns how the tool call that was just handled in this context ended; empty if no call began.
        """
        self._tracer = tracer
        self._server_name = server_name
        self._tool_label = tool_label
        self._call_outcome = call_outcome

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Handle one message. Raises what the handler raises."""
        span = self._start(ctx)
        token = current_message.set(_Message(self._tracer, self._server_name, span))
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                result = await call_next(ctx)
            if span.is_recording() and ctx.method == TOOL_CALL and _is_error(result):
                _fail(span, "tool_error")
            return result
        except BaseException as error:
            if span.is_recording():
                _note_failure(span, error)
            raise
        finally:
            current_message.reset(token)
            if span.is_recording() and ctx.method == TOOL_CALL:
                self._describe_call(span, ctx)
            span.end()

    def _start(self, ctx: ServerRequestContext[Any, Any]) -> Span:
        request = trace_of(ctx.request.scope) if ctx.request is not None else None
        parent = request.span.get_span_context() if request is not None else None
        carried = from_meta(ctx.meta)
        links = []
        if carried is not None and (parent is None or carried.trace_id != parent.trace_id):
            # A proxy began a trace of its own. The message belongs to its sender's.
            links = [Link(parent)] if parent is not None else []
            parent = carried
        method = _known(ctx.method)
        span = self._tracer.start_span(
            method,
            context_below(parent),
            kind=SpanKind.SERVER,
            attributes={"mcp.method.name": method, "gumcp.server": self._server_name},
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        )
        if span.is_recording():
            if ctx.protocol_version in KNOWN_PROTOCOL_VERSIONS:
                span.set_attribute("mcp.protocol.version", ctx.protocol_version)
            if isinstance(ctx.request_id, int):  # a text may be anything
                span.set_attribute("jsonrpc.request.id", str(ctx.request_id)[:MAX_ID_LENGTH])
        return span

    def _describe_call(self, span: Span, ctx: ServerRequestContext[Any, Any]) -> None:
        # At its end: the server's listing may not have been known when it began.
        label = self._tool_label((ctx.params or {}).get("name"))
        outcome = self._call_outcome() or REFUSED
        if outcome in HOST_OUTCOMES:
            _fail(span, outcome)
        span.update_name(f"{TOOL_CALL} {label}")
        span.set_attributes(
            {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": label,
                "gumcp.outcome": outcome,
            }
        )


class _Message:
    """A message that is being handled, for what its handler logs and sends on to a command or a remote server."""

    def __init__(self, tracer: Tracer, server_name: str, span: Span) -> None:
        self._tracer = tracer
        self._server_name = server_name
        self._span = span

    @property
    def trace_id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    @contextmanager
    def sending(self, method: str) -> Iterator[Mapping[str, str]]:
        shown = _known(method)
        attributes = {"mcp.method.name": shown, "gumcp.server": self._server_name}
        with self._tracer.start_as_current_span(
            f"{shown} (upstream)",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield as_fields(span.get_span_context())
            except BaseException as error:
                _note_failure(span, error)
                raise


def _known(method: str) -> str:
    """A method that the protocol defines, or what stands for any other: clients can send any text."""
    return method if method in SPEC_CLIENT_METHODS else OTHER_METHOD


def _is_error(result: HandlerResult) -> bool:
    # The SDK has made a dictionary of what the handler returned by now, unless other middleware answered.
    return isinstance(result, dict) and result.get("isError") is True


def _note_failure(span: Span, error: BaseException) -> None:
    """Note that a message failed. Of the error, only its code or its type: its text may have what a caller sent."""
    if isinstance(error, MCPError | ValidationError):
        code = str(error.error.code if isinstance(error, MCPError) else INVALID_PARAMS)
        span.set_attribute("rpc.response.status_code", code)
        _fail(span, code)
    else:
        _fail(span, type(error).__qualname__)


def _fail(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)
