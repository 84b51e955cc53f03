import json
import random
import tracemalloc
from typing import Any

import pydantic_core
import pytest

from gateway import json_size
from gateway.json_size import JsonSize, _measure_exactly, least_bytes, measure

TEXTS = ["", ",", "[{", 'a"b', "\\", '\\\\"', "x\\", '"', "é,[", "\n", "{}", "[]", " ", "\u2028"]


def size_of(value: Any) -> JsonSize:
    """The size of a decoded value, by walking through it."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    if parts is None:
        return JsonSize(1, 0)
    sizes = [size_of(part) for part in parts]
    return JsonSize(1 + sum(size.values for size in sizes), 1 + sum(size.containers for size in sizes))


def some_value(depth: int) -> Any:
    kind = random.random()
    if depth == 0 or kind < 0.4:
        return random.choice([random.choice(TEXTS) + random.choice(TEXTS), 1, -1.5e3, None, True])
    if kind < 0.7:
        return [some_value(depth - 1) for _ in range(random.randrange(4))]
    return {f"{random.choice(TEXTS)}{number}": some_value(depth - 1) for number in range(random.randrange(4))}


@pytest.mark.parametrize("slice_bytes", [5, 16, 64 * 1024])
def test_exact_count_is_that_of_the_decoded_value(monkeypatch: pytest.MonkeyPatch, slice_bytes: int) -> None:
    monkeypatch.setattr(json_size, "SLICE_BYTES", slice_bytes)
    for seed in range(2000):
        random.seed(seed)
        value = some_value(4)
        text = json.dumps(value, indent=random.choice([None, 1]), ensure_ascii=random.random() < 0.5).encode()
        assert _measure_exactly(text, 10**9) == size_of(value), text


@pytest.mark.parametrize(
    "text",
    [
        b'["' + b"[{,:" * 1000 + b'"]',
        b'["' + rb"\",[" * 1000 + b'"]',
        b'["' + rb"\\" * 1000 + b'", "' + b"," * 1000 + b'"]',
        b"[" + b" " * 1000 + b"]",
        json.dumps(list(range(100))).encode(),
    ],
    ids=["brackets in a text", "escaped quotation marks", "backslashes", "spaces", "exactly as many"],
)
def test_text_with_few_values_is_within_the_limit_whatever_its_strings_say(text: bytes) -> None:
    assert measure(text, 101).values <= 101
    assert size_of(json.loads(text)).values <= measure(text, 101).values


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"{}," * 100 + b"0]",
        b"[" + b"0," * 101 + b"0]",
        b'{"a":' * 101 + b"0" + b"}" * 101,
        b"[" * 101 + b"]" * 101,
        b"[" + b'"",' * 101 + b'""]',
        b"[" + b'"\\"",' * 101 + b'""]',
        b"[[" + b"[] , " * 100 + b"{ }]]",
        # Not JSON: a decoder would notice only after it has made the objects.
        b"[" * 200,
        b"[" + b"0," * 101,
    ],
)
def test_text_with_more_values_than_allowed_is_noticed(text: bytes) -> None:
    assert measure(text, 100).values > 100


@pytest.mark.parametrize("unit", [b"{},", b"[],", b'{"a":1},', b"0,", b"1000,", b'"abc",', b'{"abcdef":"x"},'])
def test_estimate_is_at_least_what_decoding_takes(unit: bytes) -> None:
    text = b"[" + unit * 5000 + b"0]"
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        decoded = pydantic_core.from_json(text)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert decoded
    assert taken <= measure(text, 10**6).decoded_bytes(len(text))


@pytest.mark.parametrize(
    "result",
    [
        {"content": [{"type": "text", "text": "x" * 100}, {"type": "image", "data": "y" * 50}]},
        {"contents": [{"uri": "a:b", "text": "\u00e9" * 150}]},
        {"contents": [{"uri": "a:b", "blob": "z" * 150}]},
    ],
)
def test_texts_of_a_result_are_the_least_that_it_takes(result: dict[str, Any]) -> None:
    assert least_bytes(result) == 150
    assert len(json.dumps(result)) > 150


@pytest.mark.parametrize("result", [{}, {"content": 7}, {"content": [7, {"text": 7}]}, {"tools": [{"text": "x" * 99}]}])
def test_other_results_take_nothing_at_least(result: dict[str, Any]) -> None:
    assert least_bytes(result) == 0
