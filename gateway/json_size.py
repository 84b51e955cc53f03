"""How much memory a JSON text takes once it is decoded, found out before any of its objects is made.

Three bytes of text, such as `{},`, can become 72 bytes of objects. What is counted here is exact about strings: a text
full of commas is one value.
"""

from typing import Any, Final, NamedTuple

SLICE_BYTES: Final = 64 * 1024
"""How much text is looked at in one step: strings are cut out with lists, which take more memory than the text."""

BYTES_PER_CONTAINER: Final = 200
"""An object with one member, with its place in what contains it (Python 3.11: 184 bytes and 8); arrays take less."""

BYTES_PER_SCALAR: Final = 40
"""A number or a short text beside its characters, with its place."""

_WHITESPACE: Final = b" \t\r\n"


SHORT_BYTES: Final = 64 * 1024
"""Up to here `has_too_many_values` does not count: so short a text cannot hold up others."""


class JsonSize(NamedTuple):
    """What a JSON text holds."""

    values: int
    """Objects, arrays, texts, numbers, booleans and nulls; the names of members are not counted."""
    containers: int
    """Objects and arrays."""

    def decoded_bytes(self, text_bytes: int) -> int:
        """About how much memory the text and its objects take together, `text_bytes` being the length of the text."""
        scalars = self.values - self.containers
        return 2 * text_bytes + BYTES_PER_CONTAINER * self.containers + BYTES_PER_SCALAR * scalars


def measure(text: bytes, max_values: int) -> JsonSize:
    """Count the values in `text`, at least as far as `max_values`.

    The count may be too high while it stays within `max_values`. It is above `max_values` only if `text` has more
    values than that, or is not JSON. For text that is not JSON it is at least what a decoder makes before it notices.
    """
    containers = text.count(b"[") + text.count(b"{")
    values = containers + text.count(b",") + 1
    if values <= max_values:
        return JsonSize(values, containers)
    return _measure_exactly(text, max_values)


def has_too_many_values(text: bytes, max_values: int) -> bool:
    """Whether a text that is not short has more than `max_values` values."""
    return len(text) > SHORT_BYTES and measure(text, max_values).values > max_values


def _measure_exactly(text: bytes, max_values: int) -> JsonSize:
    commas = containers = empty = quotation_marks = 0
    is_in_string = False
    rest = b""
    for start in range(0, len(text), SLICE_BYTES):
        piece = rest + text[start : start + SLICE_BYTES]
        # A backslash at the end belongs to the next character.
        rest = b"\\" if (len(piece) - len(piece.rstrip(b"\\"))) % 2 else b""
        piece = piece.removesuffix(rest).replace(rb"\\", b"").replace(rb"\"", b"")
        parts = piece.split(b'"')
        quotation_marks += len(parts) - 1
        # One quotation mark stays for each string: an array of strings is not an empty array.
        outside = b'"'.join(parts[is_in_string::2]).translate(None, _WHITESPACE)
        is_in_string = quotation_marks % 2 == 1
        if not is_in_string and outside.endswith((b"[", b"{")):
            # The next piece may close it.
            outside, rest = outside[:-1], outside[-1:] + rest
        commas += outside.count(b",")
        containers += outside.count(b"[") + outside.count(b"{")
        empty += outside.count(b"[]") + outside.count(b"{}")
        values = commas + containers - empty + 1
        # Each value has at most one name, so it brings at most two strings.
        if values > max_values or quotation_marks > 4 * max_values + 4:
            return JsonSize(max(values, max_values + 1), containers)
    return JsonSize(commas + containers - empty + 1, containers)


def least_bytes(result: dict[str, Any]) -> int:
    """At least how long a result of MCP is as JSON: the texts of its content together. Costs next to nothing."""
    size = 0
    for member in ("content", "contents"):
        items = result.get(member)
        if isinstance(items, list):
            for item in items:
                if isinstance(item, dict):
                    # Texts, images and sounds, and the two kinds of resources.
                    for name in ("text", "data", "blob"):
                        value = item.get(name)
                        if isinstance(value, str):
                            size += len(value)
    return size
