"""Finds keys that were issued here in any text: whole, cut, mistyped, or percent-encoded.

Not here: other secrets in texts (`redaction`).
"""

import re
from typing import Final

from gateway.access.keys import PREFIX, PUBLIC_LENGTH
from gateway.access.percent_encoding import TooOftenEncodedError, blank_encoded

ISSUED_KEY: Final = re.compile(rf"({PREFIX}[0-9A-Za-z]{{{PUBLIC_LENGTH}}})_[0-9A-Za-z]{{8,}}", re.ASCII)
"""A key in plain text; of a cut key at least 8 characters of the secret. The first group is its public part."""


def contains_key(text: str) -> bool:
    """Whether a key is in `text`, percent-encoded or not. Text that is encoded too often counts as a key."""
    try:
        return without_keys(text) != text or blank_encoded(text, without_keys) != text
    except TooOftenEncodedError:
        return True


def without_keys(text: str) -> str:
    """`text` with the public part in place of each key that is not percent-encoded."""
    return ISSUED_KEY.sub(r"\1", text) if PREFIX in text else text
