"""What a caller presents: the key in the URL's path, in the Authorization header, or in both. Pure parsing.

Not here: whether the key is good (`authenticator`), the form of a session key (`identity`).
"""

import hmac
from dataclasses import dataclass, field

from gateway.access.identity import parse_session_key
from gateway.exceptions import InvalidSessionKey


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key, and the user id that the path names, if any."""

    key: str = field(repr=False)
    user_id: str | None = None


class NoKey(Exception):
    """The request has no key. Clients send such requests before they know that they need one."""


class UnusableKey(Exception):
    """The request has a key that cannot be used: the path is malformed, or path and header have different keys."""


def authorization_header(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """The Authorization header. Several become one value that is not a valid credential."""
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            found = value if found is None else b"%b, %b" % (found, value)
    return found


def read_credentials(session_key: str | None, authorization: bytes | None) -> Credentials:
    """Read what the caller presents. A header never overrides what the path says.

    `session_key` is the URL's segment as it was written, None for a URL without one.

    Raises:
        NoKey, UnusableKey
    """
    bearer = None if authorization is None else _bearer_key(authorization)
    if authorization is not None and bearer is None:
        # Another scheme, or a client whose key is empty. The path does not count either: see above.
        raise NoKey
    if session_key is None:
        if bearer is None:
            raise NoKey
        return Credentials(bearer)
    try:
        written = parse_session_key(session_key)
    except InvalidSessionKey:
        raise UnusableKey from None
    key = written.api_key or bearer
    if key is None:
        raise NoKey
    if bearer is not None and not hmac.compare_digest(key.encode(), bearer.encode()):
        raise UnusableKey
    return Credentials(key, written.user_id)


def _bearer_key(authorization: bytes) -> str | None:
    # RFC 9110 section 11.1: the scheme is case-insensitive.
    scheme, _, credentials = authorization.partition(b" ")
    credentials = credentials.strip(b" ")
    if scheme.lower() != b"bearer" or not credentials:
        return None
    return credentials.decode("latin-1")
