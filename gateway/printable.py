"""Texts as people read them in logs, in the admin and on a terminal.

Clients, users and folders choose many of these texts. A line break would forge a log line, and a format character such
as U+202E (right-to-left override) would show other text than is there. Both are written as escapes.
"""

import unicodedata
from typing import Final

_UNPRINTABLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control and format characters, halves of surrogate pairs, line and paragraph separators (Unicode categories)."""


LINES: Final = "\n\t"
"""What texts of several lines keep."""


class Lines(str):
    """A text of the host's own that has several lines, such as a traceback. Log records keep its line breaks."""

    __slots__ = ()


def printable(text: str, keep: str = "") -> str:
    """`text` with control and format characters as escapes such as `\\n` and `\\u202e`, except those in `keep`."""
    if text.isprintable():
        return text
    return "".join(
        character if character in keep or not _is_unprintable(character) else _escape(character) for character in text
    )


def is_printable(text: str) -> bool:
    """Whether `text` has no control and no format characters."""
    return text.isprintable() or not any(map(_is_unprintable, text))


def _is_unprintable(character: str) -> bool:
    return unicodedata.category(character) in _UNPRINTABLE


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
