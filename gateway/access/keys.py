"""Keys as text: how they are made and recognised, also if they are mistyped. Not here: whose a key is (`store`).

    gumcp_Ab3dE6gH_<43 characters of secret><6 characters of checksum>
    └─ public ───┘

The first part is public: it names the key in logs and in the admin. Secret scanners find keys by their prefix and
checksum. The checksum also lets the host refuse a mistyped key without a look-up.
"""

import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

PREFIX: Final = "gumcp_"
PUBLIC_LENGTH: Final = 8
SECRET_LENGTH: Final = 43
"""43 characters of 62 are 256 bits."""
CHECKSUM_LENGTH: Final = 6
"""Six characters of 62 hold a CRC-32."""

_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase

KEY_PATTERN: Final = rf"{PREFIX}[0-9A-Za-z]{{{PUBLIC_LENGTH}}}_[0-9A-Za-z]{{{SECRET_LENGTH + CHECKSUM_LENGTH}}}"
"""What secret scanners look for."""

_KEY: Final = re.compile(KEY_PATTERN, re.ASCII)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new key. It is shown once; nothing keeps its text."""

    text: str = field(repr=False)
    public: str
    """The part that may be written down."""
    digest: bytes = field(repr=False)
    """What is stored, to recognise the key."""


def make_key() -> NewKey:
    """Make a random key."""
    public = PREFIX + _random_text(PUBLIC_LENGTH)
    body = f"{public}_{_random_text(SECRET_LENGTH)}"
    text = with_checksum(body)
    return NewKey(text, public, key_digest(text))


def is_well_formed(text: str) -> bool:
    """Whether `text` has the form and the checksum of a key. The key need not exist."""
    return _KEY.fullmatch(text) is not None and _checksum(text[:-CHECKSUM_LENGTH]) == text[-CHECKSUM_LENGTH:]


def with_checksum(body: str) -> str:
    """The text of a key, from the part before the checksum."""
    return body + _checksum(body)


def public_part(text: str) -> str:
    """The part of a well-formed key that may be written down."""
    return text[: len(PREFIX) + PUBLIC_LENGTH]


def key_digest(text: str) -> bytes:
    """The digest by which a key is recognised. A slow hash is not needed: nobody can try out 256 random bits."""
    return sha256(text.encode("utf-8", "surrogateescape")).digest()


def _random_text(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    rest = zlib.crc32(body.encode("ascii"))
    characters = []
    for _ in range(CHECKSUM_LENGTH):
        rest, digit = divmod(rest, len(_ALPHABET))
        characters.append(_ALPHABET[digit])
    return "".join(reversed(characters))
