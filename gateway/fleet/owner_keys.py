"""The key that decides who owns a request: its server, and whoever is calling.

All requests of one caller on one server have the same key, whatever the protocol era, so one process has the caller's
instance and sessions. Keys are not checked here. The process that owns a wrong key refuses it.
"""

from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.catalog.names import DJANGO_SEGMENTS
from gateway.console.playground import PREFIX as PLAYGROUND_PREFIX
from gateway.http.asgi import Headers

_PLAYGROUND: Final = PLAYGROUND_PREFIX.encode()


_OWNED_METHODS: Final = frozenset({"GET", "POST", "DELETE"})


def owner_key(method: str, target: bytes, headers: Headers) -> bytes | None:
    """The key of an HTTP request; None for requests that every process answers itself.

    `target`: the path as it was sent, also with a query. Names of `headers` are in lower case.

    It is `{server}/{key}`, the key being the bearer token, else what follows the first `:` of the session key, else the
    user id. The playground's requests name both behind `PLAYGROUND_PREFIX`: the user by a user id where keys are not
    checked, so that they reach the user's instance; otherwise by the public part of a key.
    """
    if method not in _OWNED_METHODS:
        # Preflights, and methods that are refused.
        return None
    path = target.partition(b"?")[0]
    if path.startswith(_PLAYGROUND):
        return b"/".join(unquote_to_bytes(segment) for segment in path.removeprefix(_PLAYGROUND).split(b"/")[:2])
    segments = path.split(b"/")
    if len(segments) < 2 or not segments[1] or segments[1].decode("latin-1") in DJANGO_SEGMENTS:
        return None
    key = _bearer(headers)
    if key is None:
        session_key = unquote_to_bytes(segments[2]) if len(segments) > 2 else b""
        user_id, _, api_key = session_key.partition(b":")
        key = api_key or user_id
    return segments[1] + b"/" + key if key else None


def _bearer(headers: Headers) -> bytes | None:
    for name, value in headers:
        if name == b"authorization":
            kind, _, token = value.partition(b" ")
            return token.strip() or None if kind.lower() == b"bearer" else None
    return None
