"""Decides which requests are recorded: as `OTEL_TRACES_SAMPLER` says, and never more than so many a second.

A client's `traceparent` has a flag that asks for recording, and a client can choose a trace id that a ratio lets
through. So the flag only ever lowers what the operator has chosen, and what remains is bounded.
"""

import threading
import time
from collections.abc import Callable, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes


class BoundedSampler(Sampler):
    """Asks another sampler about each new trace, and lets a bounded number of them through. Safe for threads."""

    def __init__(self, chosen: Sampler, per_second: int, now: Callable[[], float] = time.monotonic) -> None:
        """`chosen`: the operator's sampler. `now`: a clock in seconds."""
        self._chosen = chosen
        self._per_second = per_second
        self._now = now
        self._lock = threading.Lock()
        self._left = float(per_second)
        self._counted_at = now()

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide about one span. Spans below another one of this process follow that one."""
        parent = get_current_span(parent_context).get_span_context()
        state = parent.trace_state if parent.is_valid else None
        if parent.is_valid and not parent.is_remote:
            is_sampled = parent.trace_flags.sampled
        else:
            # Without the parent: what the operator has chosen holds for clients that ask for more, too.
            result = self._chosen.should_sample(Context(), trace_id, name, kind, attributes, links)
            is_sampled = result.decision is Decision.RECORD_AND_SAMPLE
            if is_sampled and parent.is_valid and not parent.trace_flags.sampled:
                result = self._chosen.should_sample(parent_context, trace_id, name, kind, attributes, links)
                is_sampled = result.decision is Decision.RECORD_AND_SAMPLE
            is_sampled = is_sampled and self._take()
        decision = Decision.RECORD_AND_SAMPLE if is_sampled else Decision.DROP
        return SamplingResult(decision, attributes if is_sampled else None, state)

    def _take(self) -> bool:
        """Count one trace. Returns whether there was room for it."""
        with self._lock:
            now = self._now()
            self._left = min(self._left + (now - self._counted_at) * self._per_second, self._per_second)
            self._counted_at = now
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def get_description(self) -> str:
        """What this sampler is, for people."""
        return f"{self._chosen.get_description()}, at most {self._per_second} a second"
