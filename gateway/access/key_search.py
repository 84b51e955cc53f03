"""Finds keys that were issued here in any text: whole, cut, mistyped, and percent-encoded, also several times.

Not here: other secrets in texts (`redaction`).
"""

import re
from typing import Final
from urllib.parse import unquote

from gateway.access.keys import PREFIX, PUBLIC_LENGTH

MAX_ENCODINGS: Final = 4
"""How many times a text is decoded in search of a key. Text that is encoded more often is treated as a key."""

_MIN_SECRET_LENGTH: Final = 8
"""How many characters of its secret a cut key has at least."""

ISSUED_KEY: Final = re.compile(
    rf"({PREFIX}[0-9A-Za-z]{{{PUBLIC_LENGTH}}})_[0-9A-Za-z]{{{_MIN_SECRET_LENGTH},}}", re.ASCII
)
"""A key in plain text. The first group is its public part."""

_ENCODED: Final = re.compile(rf"[0-9A-Za-z_%]{{{len(PREFIX) + PUBLIC_LENGTH + 1 + _MIN_SECRET_LENGTH},}}", re.ASCII)
"""Characters that may be a percent-encoded key."""


def without_keys(text: str) -> str:
    """`text` with each key replaced by its public part, so that operators can find the key."""
    if PREFIX in text:
        text = ISSUED_KEY.sub(r"\1", text)
    return _ENCODED.sub(_without_encoded_key, text) if "%" in text else text


def contains_key(text: str) -> bool:
    """Whether a key is in `text`."""
    return without_keys(text) != text


def _without_encoded_key(match: re.Match[str]) -> str:
    encoded = decoded = match.group()
    for _ in range(MAX_ENCODINGS):
        once_more = unquote(decoded, "latin-1")
        if once_more == decoded:
            return encoded
        decoded = once_more
        key = ISSUED_KEY.search(decoded)
        if key is not None:
            return f"[{key.group(1)}]"
    return encoded if unquote(decoded, "latin-1") == decoded else "[redacted]"
