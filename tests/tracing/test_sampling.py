"""How many requests are recorded, whatever their clients ask for."""

from __future__ import annotations

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBasedTraceIdRatio,
    Sampler,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context

from gateway.tracing.sampling import BoundedSampler

NEVER_CHOSEN = 2**64 - 1
"""A trace id that no ratio below 1 lets through."""


def below(trace_id: int, *, is_remote: bool = True, is_sampled: bool = True) -> Context:
    state = TraceState([("vendor", "value")])
    parent = SpanContext(trace_id, 1, is_remote, TraceFlags(int(is_sampled)), state)
    return set_span_in_context(NonRecordingSpan(parent), Context())


def is_recorded(sampler: Sampler, context: Context, trace_id: int = 1) -> bool:
    result = sampler.should_sample(context, trace_id, "POST")
    return result.decision is Decision.RECORD_AND_SAMPLE


def test_clients_that_ask_for_recording_get_no_more_than_the_bound() -> None:
    seconds = 0.0
    sampler = BoundedSampler(ALWAYS_ON, 10, lambda: seconds)
    assert sum(is_recorded(sampler, below(1)) for _ in range(1000)) == 10
    seconds = 0.5
    assert sum(is_recorded(sampler, Context()) for _ in range(1000)) == 5
    seconds = 3600
    assert sum(is_recorded(sampler, below(1)) for _ in range(1000)) == 10


def test_spans_below_a_recorded_one_are_recorded_and_do_not_count() -> None:
    sampler = BoundedSampler(DEFAULT_ON, 1, lambda: 0.0)
    assert is_recorded(sampler, Context())
    assert all(is_recorded(sampler, below(1, is_remote=False)) for _ in range(50))
    assert not is_recorded(sampler, below(1, is_remote=False, is_sampled=False))


@pytest.mark.parametrize("sampler", [DEFAULT_OFF, ParentBasedTraceIdRatio(0.5)])
def test_flag_of_a_client_does_not_raise_what_the_operator_has_chosen(sampler: Sampler) -> None:
    assert is_recorded(sampler, below(NEVER_CHOSEN), NEVER_CHOSEN)  # what OpenTelemetry alone does
    assert not is_recorded(BoundedSampler(sampler, 10), below(NEVER_CHOSEN), NEVER_CHOSEN)


def test_client_that_does_not_record_lowers_what_the_operator_has_chosen_as_the_sampler_says() -> None:
    assert not is_recorded(BoundedSampler(DEFAULT_ON, 10), below(1, is_sampled=False))
    assert is_recorded(BoundedSampler(ALWAYS_ON, 10), below(1, is_sampled=False))


def test_tracestate_is_kept() -> None:
    assert BoundedSampler(ALWAYS_ON, 10).should_sample(below(1), 1, "POST").trace_state == {"vendor": "value"}
