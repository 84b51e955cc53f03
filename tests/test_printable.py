"""Texts that people read show what is there, on one line."""

import pytest

from gateway.printable import LINES, is_printable, printable
from gateway.storable import storable

FORGING = {
    "a\nb": r"a\nb",
    "a\rb": r"a\rb",
    "a\tb": r"a\tb",
    "a\0b": r"a\x00b",
    "a\x1b[2Jb": r"a\x1b[2Jb",
    "a\x85b": r"a\x85b",
    "a\u2028b": r"a\u2028b",
    "a\u2029b": r"a\u2029b",
    "a\u202eb": r"a\u202eb",
    "a\u2066b": r"a\u2066b",
    "a\u200bb": r"a\u200bb",
    "a\ufeffb": r"a\ufeffb",
    "a\udce9b": r"a\udce9b",
    "a\U000e0041b": r"a\U000e0041b",
}


@pytest.mark.parametrize(("text", "shown"), FORGING.items())
def test_control_and_format_characters_are_escaped(text: str, shown: str) -> None:
    assert (printable(text), is_printable(text)) == (shown, False)
    assert storable(text, 100) == shown


@pytest.mark.parametrize("text", ["", "ada", "Ærøskøbing", "測る", "عربى", "a\u00a0b", "a\u3000b", "😀", "a\\nb"])
def test_other_text_is_left_as_it_is(text: str) -> None:
    assert (printable(text), is_printable(text)) == (text, True)


def test_text_of_several_lines_keeps_its_lines_only() -> None:
    assert printable("a\n\tb\r\u202e", keep=LINES) == "a\n\tb\\r\\u202e"


def test_text_that_is_too_long_loses_its_middle() -> None:
    assert storable("a" * 10 + "b" * 10, 9) == "aaaa…bbbb"
