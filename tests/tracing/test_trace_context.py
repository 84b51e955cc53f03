"""Which `traceparent` and `tracestate` are taken from clients."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from gateway.tracing.trace_context import as_fields, from_headers, from_message, from_meta
from tests.support.traces import PARENT, TRACE, TRACEPARENT


@pytest.mark.parametrize("value", [TRACEPARENT, f" {TRACEPARENT}\t", f"cc-{TRACE}-{PARENT}-01-what-comes-later"])
def test_well_formed_traceparent_is_taken(value: str) -> None:
    for found in (from_headers([(b"traceparent", value.encode())]), from_meta({"traceparent": value})):
        assert found is not None
        assert found.is_remote
        assert as_fields(found) == {"traceparent": TRACEPARENT}


@pytest.mark.parametrize(
    "value",
    [
        "",
        "canary",
        TRACEPARENT.upper(),
        f"{TRACEPARENT}-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}",
        f"{TRACEPARENT}\n",
        f"cc-{TRACE}-{PARENT}-01-{'x' * 10_000}",
        TRACEPARENT.replace("00-", "\N{ARABIC-INDIC DIGIT ZERO}" * 2 + "-", 1),
    ],
)
def test_malformed_traceparent_is_ignored_and_not_logged(value: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert from_headers([(b"traceparent", value.encode())]) is None
    assert from_meta({"traceparent": value}) is None
    assert caplog.records == []


@pytest.mark.parametrize("meta", [None, [], "traceparent", {"traceparent": 1}, {"traceparent": [TRACEPARENT]}, {}])
def test_meta_of_another_form_is_ignored(meta: Any) -> None:
    assert from_meta(meta) is None
    assert from_message({"jsonrpc": "2.0", "method": "ping", "params": {"_meta": meta}}) is None


@pytest.mark.parametrize("message", [None, 1, [], {}, {"params": []}, [1, {"params": None}]])
def test_message_of_another_form_is_ignored(message: Any) -> None:
    assert from_message(message) is None


def test_batch_belongs_to_the_first_trace_that_is_named_in_it() -> None:
    named = {"params": {"_meta": {"traceparent": TRACEPARENT}}}
    found = from_message([{"params": {}}, named])
    assert found is not None
    assert f"{found.trace_id:032x}" == TRACE


def test_two_traceparent_headers_are_ignored() -> None:
    assert from_headers([(b"traceparent", TRACEPARENT.encode())] * 2) is None


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("vendor=value", "vendor=value"),
        ("a@b=1, c=2 ,,d/e=3", "a@b=1,c=2,d/e=3"),
        ("vendor", ""),
        ("canary=\x7f", ""),
        ("a=1,a=2", ""),
        (",".join(f"k{number}=v" for number in range(33)), ""),
        ("vendor=" + "v" * 600, ""),
    ],
)
def test_tracestate_is_passed_on_or_left_out_whole_if_it_is_malformed(
    state: str, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    found = from_headers([(b"traceparent", TRACEPARENT.encode()), (b"tracestate", state.encode())])
    assert found is not None
    assert as_fields(found).get("tracestate", "") == kept
    assert found == from_meta({"traceparent": TRACEPARENT, "tracestate": state})
    assert caplog.records == []
