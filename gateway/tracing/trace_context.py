"""Reads and writes W3C trace context: `traceparent` and `tracestate`, in HTTP headers and in `_meta`.

Anything malformed is ignored and not logged, because clients choose it. OpenTelemetry's own propagator would write it
into the log. Baggage is not taken from clients.

Spec: https://www.w3.org/TR/trace-context/ and, for `_meta`, SEP-414 of MCP.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    TraceState,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

_TRACEPARENT: Final = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]{0,400})?")

MAX_TRACESTATE_LENGTH: Final = 512
MAX_TRACESTATE_MEMBERS: Final = 32
_MEMBER: Final = re.compile(
    r"([a-z0-9][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=([ -+\--<>-~]{0,255}[!-+\--<>-~])"
)


def from_headers(headers: Iterable[tuple[bytes, bytes]]) -> SpanContext | None:
    """The client's span that the headers of a request name; None if there is none, or they are malformed."""
    parents, states = [], []
    for name, value in headers:
        if name == b"traceparent":
            parents.append(value)
        elif name == b"tracestate":
            states.append(value)
    if len(parents) != 1:  # several would contradict each other
        return None
    return _span_context(parents[0].decode("latin-1"), b",".join(states).decode("latin-1"))


def from_meta(meta: object) -> SpanContext | None:
    """The client's span that the `_meta` of a message names; None if there is none, or it is malformed."""
    if not isinstance(meta, Mapping):
        return None
    parent, state = meta.get(TRACEPARENT), meta.get(TRACESTATE)
    if not isinstance(parent, str):
        return None
    return _span_context(parent, state if isinstance(state, str) else "")


def from_message(message: Any) -> SpanContext | None:
    """The same for a decoded JSON-RPC message, or for a batch: the first message that names a span."""
    for one in message if isinstance(message, list) else (message,):
        params = one.get("params") if isinstance(one, dict) else None
        found = from_meta(params.get("_meta")) if isinstance(params, dict) else None
        if found is not None:
            return found
    return None


def as_fields(context: SpanContext) -> dict[str, str]:
    """The fields that name a span, for headers or for `_meta`."""
    flags = f"{context.trace_flags:02x}"
    fields = {TRACEPARENT: f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{flags}"}
    if context.trace_state:
        fields[TRACESTATE] = context.trace_state.to_header()
    return fields


def context_below(parent: SpanContext | None) -> Context:
    """The context in which a span is started that continues `parent`; for None, one that begins a trace."""
    return Context() if parent is None else set_span_in_context(NonRecordingSpan(parent), Context())


def _span_context(parent: str, state: str) -> SpanContext | None:
    match = _TRACEPARENT.fullmatch(parent.strip(" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "00" and more is not None:
        return None
    context = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)), _trace_state(state))
    return context if context.is_valid else None


def _trace_state(text: str) -> TraceState | None:
    """Vendors' part of a trace. It is passed on as it came, or left out if it is malformed."""
    if not text or len(text) > MAX_TRACESTATE_LENGTH:
        return None
    entries: dict[str, str] = {}
    for member in (part.strip(" \t") for part in text.split(",")):
        match = _MEMBER.fullmatch(member)
        if member and (match is None or match[1] in entries):
            return None
        if match is not None:
            entries[match[1]] = match[2]
    return TraceState(list(entries.items())) if len(entries) <= MAX_TRACESTATE_MEMBERS else None
