"""Decodes percent-encoding several times, because proxies, log viewers and browsers may each decode once more."""

import re
from collections.abc import Callable
from typing import Final

from gateway.printable import printable

MAX_ENCODINGS: Final = 4
"""How many times a text is decoded. Text that is encoded more often counts as hiding something."""

_ESCAPE: Final = re.compile("%[0-9A-Fa-f]{2}")

_CHARACTERS: Final = {f"%{byte:02x}": printable(chr(byte)) for byte in range(256)}
"""What each escape stands for. Control characters stay escaped, in another way: what is decoded here may be logged."""


class TooOftenEncodedError(Exception):
    """The text is encoded more often than anybody needs."""


def blank_encoded(text: str, blank: Callable[[str], str]) -> str:
    """Apply `blank` to what `text` decodes to, again after each decoding. Bytes are read as Latin-1.

    Returns the decoded and blanked text if `blank` changed anything, otherwise `text` as it is.

    Raises:
        TooOftenEncodedError
    """
    current, has_changed = text, False
    for _ in range(MAX_ENCODINGS):
        if not _ESCAPE.search(current):
            return current if has_changed else text
        decoded = _ESCAPE.sub(_decoded, current)
        current = blank(decoded)
        has_changed |= current != decoded
    if _ESCAPE.search(current):
        raise TooOftenEncodedError
    return current if has_changed else text


def _decoded(match: re.Match[str]) -> str:
    return _CHARACTERS[match.group().lower()]
