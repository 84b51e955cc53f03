"""Reads HTTP requests: headers, media types, the client's address, the body."""

import asyncio
import contextlib
from typing import Any, Final

from gateway.exceptions import BodyTooLarge, ClientDisconnected
from gateway.http.asgi import Receive, Scope

DISCARD_BYTES: Final = 16 * 1024 * 1024
DISCARD_SECONDS: Final = 5.0
"""How much of a body that is too large, and for how long, is read and thrown away before it is refused."""


def header(scope: Scope, name: bytes) -> str | None:
    """The first header called `name` (lower case), or None."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def client_address(scope: Scope) -> str:
    """The client's IP address, or nothing where it has none."""
    client: Any = scope.get("client")
    return str(client[0]) if client else ""


def accepts(scope: Scope, media_type: str) -> bool:
    """Whether the request's Accept header allows `media_type`; a missing header allows everything (RFC 9110)."""
    # RFC 9110 section 5.3: several lines of a list are one list.
    lines = [value for key, value in scope["headers"] if key == b"accept"]
    if not lines:
        return True
    ranges = {part.split(";")[0].strip().lower() for part in b",".join(lines).decode("latin-1").split(",")}
    return not ranges.isdisjoint({media_type, f"{media_type.partition('/')[0]}/*", "*/*"})


def is_json(scope: Scope) -> bool:
    """Whether the request's body is said to be JSON; parameters are ignored."""
    # Exactly one, and no list: `text/plain; x=,application/json` is plain text to a browser, which lets any page send
    # that without asking first.
    types = [value for key, value in scope["headers"] if key == b"content-type"]
    return len(types) == 1 and types[0].partition(b";")[0].strip().lower() == b"application/json"


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Read the whole request body.

    Raises:
        BodyTooLarge: it is announced, or turns out, longer than `max_bytes`.
        ClientDisconnected: the client left in the middle.
    """
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdecimal() and int(announced[:20]) > max_bytes:
        if header(scope, b"expect") is None:  # who asks first has sent nothing yet
            await _discard_body(receive)
        raise BodyTooLarge(f"The body is longer than {max_bytes} bytes.")
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
                await _discard_body(receive)
            raise BodyTooLarge(f"The body is longer than {max_bytes} bytes.")
        if not message.get("more_body", False):
            return b"".join((*chunks, chunk)) if chunks else chunk
        chunks.append(chunk)


async def _discard_body(receive: Receive) -> None:
    """Read on, within bounds: a client that is still sending when its connection closes is reset and reads no answer.

    Raises:
        ClientDisconnected: it left.
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
