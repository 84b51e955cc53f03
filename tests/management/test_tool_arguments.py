from typing import Any

import pytest
from django.core.management.base import CommandError

from gateway.management.tool_arguments import parse_arguments

SCHEMA = {
    "properties": {
        "text": {"type": "string"},
        "number": {"type": "integer"},
        "flag": {"type": "boolean"},
        "items": {"type": "array"},
        "choice": {"enum": ["1", "2"]},
        "optional": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "either": {"type": ["string", "integer"]},
        "odd": True,
    }
}


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ([], {}),
        (['{"text": "a", "number": 1}'], {"text": "a", "number": 1}),
        (["text=12"], {"text": "12"}),
        (["text="], {"text": ""}),
        (["text=a=b"], {"text": "a=b"}),
        (["number=12", "flag=true"], {"number": 12, "flag": True}),
        (["items=[1, 2]"], {"items": [1, 2]}),
        (["choice=1"], {"choice": "1"}),
        (["optional=3"], {"optional": 3}),
        (["optional=null"], {"optional": None}),
        (["either=3"], {"either": "3"}),
        (["text:=3"], {"text": 3}),
        (["unknown=3", "odd=x", "other=x y"], {"unknown": 3, "odd": "x", "other": "x y"}),
    ],
)
def test_value_has_the_type_of_the_schema(words: list[str], arguments: dict[str, Any]) -> None:
    assert parse_arguments(words, SCHEMA) == arguments


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["number=many"], "The argument number must be JSON, such as 3, true or [1, 2] (got 'many')."),
        (["text"], "Cannot read the argument 'text': write key=value, or one JSON object"),
        (["=1"], "Cannot read the argument '=1'"),
        (["{text: 1}"], "The arguments are not JSON"),
        (['["a"]'], "The arguments must be a JSON object"),
        (["null"], "The arguments must be a JSON object"),
        (["text:={"], "The argument text must be JSON"),
    ],
)
def test_word_that_cannot_be_read_is_refused_with_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(CommandError) as raised:
        parse_arguments(words, SCHEMA)
    assert sentence in str(raised.value)
