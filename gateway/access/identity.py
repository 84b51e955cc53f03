"""Who is calling. Lives here: the session key (one segment of the URL) and what it stands for.

Not here: whether the key is right (`access.authenticator`; open mode accepts any).
"""

import unicodedata
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.access.grants import Grant
from gateway.access.keys import PREFIX, is_well_formed
from gateway.exceptions import InvalidSessionKey
from gateway.printable import is_printable

MAX_SESSION_KEY_BYTES: Final = 4096
"""Longest session key as written in the URL. Tokens of a few KB exist; anything longer is not a key."""

MAX_USER_ID_LENGTH: Final = 255
"""Longest user id, in characters: what the session rows can hold."""

_NOTHING: Final = nullcontext[None]()

_HEX_DIGITS: Final = frozenset("0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Identity:
    """A user and the key they came with. Equal identities share an instance and own its sessions."""

    user_id: str
    api_key: str | None = field(default=None, repr=False)
    """The key as text, for the server's factory. None where there is no key, or where keys are hidden from servers:
    then the host keeps no text of a key."""
    grant: Grant | None = field(default=None, repr=False, compare=False)
    """What the key allows; None where keys are not checked."""
    key_digest: bytes | None = field(default=None, repr=False)
    """Tells keys apart where keys are checked, also those that are hidden."""

    @property
    def is_key_hidden(self) -> bool:
        """Whether the key is kept from servers."""
        return self.key_digest is not None and self.api_key is None

    @property
    def is_revoked(self) -> bool:
        """Whether its key is known to be no longer valid: revoked, expired, or of a disabled user."""
        return self.grant is not None and not self.grant.is_valid

    def answering(self) -> AbstractContextManager[None]:
        """Keep its grant up to date inside the block, however long the request takes."""
        return _NOTHING if self.grant is None else self.grant.answering()

    def closing(self, close: Callable[[], object]) -> AbstractContextManager[None]:
        """Call `close`, on the host's loop, if the key is revoked inside the block."""
        return _NOTHING if self.grant is None else self.grant.closing(close)


current_identity: Final[ContextVar[Identity | None]] = ContextVar("current_identity", default=None)
"""Whose request is being handled, in the endpoints and in the servers' handlers."""


def parse_session_key(segment: str) -> Identity:
    """Read `{user_id}:{api_key}` or `{user_id}` from one percent-encoded path segment.

    The segment is what the client wrote (ASGI's `raw_path`): `scope["path"]` is decoded with replacement characters,
    which makes different keys equal. It is split at the first `:` only, because keys may contain more of them.

    Raises:
        InvalidSessionKey: it is empty, too long, wrongly encoded, has control characters, or its user id could be a
            path. Servers build file names from user ids, so `/`, `\\` and `..` never reach a factory.
    """
    if len(segment) > MAX_SESSION_KEY_BYTES:
        raise InvalidSessionKey("The session key is too long.")
    is_plain = segment.isascii() and segment.isprintable() and "%" not in segment
    text = segment if is_plain else _decode(segment)
    user_id, _, api_key = text.partition(":")
    if _has_control_characters(api_key):
        raise InvalidSessionKey("The session key has control characters.")
    return Identity(parse_user_id(user_id), api_key or None)


def parse_user_id(user_id: str) -> str:
    """Return `user_id` if a factory may see it.

    Raises:
        InvalidSessionKey: it is empty, too long, has control characters or could name a path.
    """
    if not user_id.strip():
        raise InvalidSessionKey("The session key has no user id. Write it as {user_id}:{api_key} or {user_id}.")
    if len(user_id) > MAX_USER_ID_LENGTH:
        raise InvalidSessionKey(f"The user id is longer than {MAX_USER_ID_LENGTH} characters.")
    if not is_printable(user_id):
        raise InvalidSessionKey("The user id must not contain control or format characters.")
    if user_id.startswith(PREFIX) and is_well_formed(user_id):
        raise InvalidSessionKey("The session key starts with a key. Write it as {user_id}:{api_key}.")
    if "/" in user_id or "\\" in user_id or ".." in user_id or user_id == ".":
        raise InvalidSessionKey("The user id must not contain a slash, a backslash or two dots in a row.")
    return user_id


def _decode(segment: str) -> str:
    for position, character in enumerate(segment):
        if character == "%" and not _is_hex_pair(segment[position + 1 : position + 3]):
            raise InvalidSessionKey("The session key has a % that is not followed by two hexadecimal digits.")
    try:
        # The segment is the raw path read as Latin-1, so this restores the bytes that were sent.
        return unquote_to_bytes(segment.encode("latin-1", "replace")).decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise InvalidSessionKey("The session key is not valid UTF-8.") from None


def _has_control_characters(text: str) -> bool:
    # Cs: half of a surrogate pair, which bytes of a command line become that are not UTF-8. Nothing can store it.
    return not text.isprintable() and any(unicodedata.category(character) in {"Cc", "Cs"} for character in text)


def _is_hex_pair(text: str) -> bool:
    return len(text) == 2 and _HEX_DIGITS.issuperset(text)
