"""Reads HTTP requests: the target, headers, media types, the client's address, the body."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, unquote

from gateway.exceptions import BodyTooLarge, ClientDisconnected
from gateway.http.asgi import Receive, Scope

DISCARD_BYTES: Final = 16 * 1024 * 1024
DISCARD_SECONDS: Final = 5.0
"""How much of a body that is too long, and for how long, is read and thrown away before it is refused."""

KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""The HTTP methods that reach Django and that figures name. Clients can invent any number of others."""

MAX_REMEMBERED_BYTES: Final = 200
"""The longest Accept header whose meaning is remembered."""


async def until_disconnect(receive: Receive) -> None:
    """Wait until the client leaves, or until the response is complete: ASGI servers report a disconnect then too.

    Call it when the body has been read.
    """
    while (await receive())["type"] != "http.disconnect":
        pass


def raw_path(scope: Scope) -> str:
    """The path of a request as the client wrote it."""
    # Not every ASGI server sends raw_path; the decoded path is the second best.
    return (scope.get("raw_path") or quote(scope["path"], safe="/:").encode()).decode("latin-1")


def in_origin_form(scope: Scope) -> Scope:
    """`scope` with a path and a Host header, for a request whose target is a whole URL.

    Our Daphne and httptools split such a target themselves; uvicorn's other parser, h11, does not.
    Spec: RFC 9112 section 3.2.2, also that the target takes precedence over the Host header.
    """
    scheme, separator, rest = raw_path(scope).partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        return scope
    authority, _, path = rest.partition("/")
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    return {
        **scope,
        "path": f"/{unquote(path)}",
        "raw_path": f"/{path}".encode("latin-1"),
        "headers": [(b"host", authority.encode("latin-1")), *headers],
    }


def header(scope: Scope, name: bytes) -> str | None:
    """The first header called `name` (lower case), or None."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def client_address(scope: Scope) -> str:
    """The client's IP address; empty if it has none."""
    client: Any = scope.get("client")
    return str(client[0]) if client else ""


def accepts(scope: Scope, media_type: str) -> bool:
    """Whether the request's Accept header allows `media_type`; a missing header allows everything (RFC 9110)."""
    # RFC 9110 section 5.3: several lines of a list are one list.
    lines = [value for key, value in scope["headers"] if key == b"accept"]
    if not lines:
        return True
    value = b",".join(lines)
    # Clients repeat their few values. What is kept must not grow by what a stranger sends.
    allows = _allows_remembered if len(value) <= MAX_REMEMBERED_BYTES else _allows
    return allows(value, media_type)


def _allows(accept: bytes, media_type: str) -> bool:
    ranges = {part.split(";")[0].strip().lower() for part in accept.decode("latin-1").split(",")}
    return not ranges.isdisjoint({media_type, f"{media_type.partition('/')[0]}/*", "*/*"})


_allows_remembered = lru_cache(maxsize=256)(_allows)


def is_json(scope: Scope) -> bool:
    """Whether the request says that its body is JSON; parameters are ignored."""
    # There must be one value and not a list. To a browser, `text/plain; x=,application/json` is plain text, which any
    # page may send without asking first.
    types = [value for key, value in scope["headers"] if key == b"content-type"]
    return len(types) == 1 and types[0].partition(b";")[0].strip().lower() == b"application/json"


async def read_body(
    scope: Scope, receive: Receive, max_bytes: int, count: Callable[[int], None] = lambda size_bytes: None
) -> bytes:
    """Read the whole request body.

    `count` is called with the size so far whenever a part has arrived that is not the last. What it raises ends the
    reading.

    Raises:
        BodyTooLarge: it is announced, or turns out, longer than `max_bytes`.
        ClientDisconnected: the client left in the middle.
    """
    await check_announced_length(scope, receive, max_bytes)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            if message.get("more_body", False):
                await discard_body(receive)
            raise BodyTooLarge(max_bytes)
        if not message.get("more_body", False):
            return b"".join((*chunks, chunk)) if chunks else chunk
        count(size)
        chunks.append(chunk)


async def check_announced_length(scope: Scope, receive: Receive, max_bytes: int) -> None:
    """Check the Content-Length of a request.

    Raises:
        BodyTooLarge: it is more than `max_bytes`.
        ClientDisconnected: so it was, and the client left.
    """
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdecimal() and int(announced[:20]) > max_bytes:
        if header(scope, b"expect") is None:  # a client that asks first has sent nothing yet
            await discard_body(receive)
        raise BodyTooLarge(max_bytes)


async def discard_body(receive: Receive) -> None:
    """Read a body and throw it away, within limits.

    A client that is still sending when its connection closes gets a reset, and may not see the answer.

    Raises:
        ClientDisconnected: the client left.
    """
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while size < DISCARD_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                if not message.get("more_body", False):
                    return
                size += len(message.get("body", b""))
