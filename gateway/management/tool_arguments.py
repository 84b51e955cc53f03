"""Arguments of a tool or prompt on the command line: one JSON object, or `key=value` pairs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from django.core.management.base import CommandError


def parse_arguments(words: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that `words` stand for.

    `{"name": "Ada"}` is taken as it is. In `name=Ada` the value is read as the type that `schema` gives the argument: a
    text is taken as it is, everything else as JSON. `name:=[1, 2]` is JSON whatever the schema says.

    Raises:
        CommandError: a word cannot be read, or a value is not of the type in `schema`.
    """
    if (len(words) == 1 and words[0].lstrip().startswith(("{", "["))) or list(words) in (["null"], ["true"], ["false"]):
        return _object(words[0])
    arguments: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name.rstrip(":"):
            raise CommandError(f'Cannot read the argument {word!r}: write key=value, or one JSON object {{"key": …}}.')
        if name.endswith(":"):
            name = name[:-1]
            arguments[name] = _json(name, value)
        else:
            arguments[name] = _typed(name, value, schema)
    return arguments


def _object(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise CommandError(f"The arguments are not JSON: {error}.") from None
    if not isinstance(arguments, dict):
        raise CommandError('The arguments must be a JSON object, such as {"name": "value"}.')
    return arguments


def _typed(name: str, value: str, schema: Mapping[str, Any]) -> Any:
    types = _types(schema.get("properties"), name)
    if not types:
        # Unknown: a number or a flag is more likely meant than a text that looks like one.
        try:
            return json.loads(value)
        except ValueError:
            return value
    if "string" in types:
        return value
    return _json(name, value)


def _types(properties: object, name: str) -> set[str]:
    """The JSON types of an argument, as far as its schema says them."""
    declared = properties.get(name) if isinstance(properties, Mapping) else None
    if not isinstance(declared, Mapping):
        return set()
    types: set[str] = set()
    for part in (declared, *_parts(declared, "anyOf"), *_parts(declared, "oneOf")):
        named = part.get("type")
        types |= {named} if isinstance(named, str) else set(named) if isinstance(named, list) else set()
        if any(isinstance(value, str) for value in _parts_of(part.get("enum"))):
            types.add("string")
    return types


def _parts(declared: Mapping[str, Any], word: str) -> list[Mapping[str, Any]]:
    return [part for part in _parts_of(declared.get(word)) if isinstance(part, Mapping)]


def _parts_of(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _json(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        raise CommandError(f"The argument {name} must be JSON, such as 3, true or [1, 2] (got {value!r}).") from None
