"""Sends whole HTTP responses. Event streams are in `transports.event_stream`, refusals in `http.refusals`."""

import asyncio
from typing import Final

from gateway.http.asgi import Headers, Send

COMMON_HEADERS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


PIECE_BYTES: Final = 64 * 1024
"""How much of a large body is handed to the ASGI server at once. It would keep a whole one, which nobody counts."""


async def respond(send: Send, status: int, body: bytes, content_type: bytes, headers: Headers = ()) -> None:
    """Send a whole response."""
    await _start(send, status, body, content_type, headers)
    await send({"type": "http.response.body", "body": body})


async def respond_in_steps(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes,
    headers: Headers = (),
    *,
    step_bytes: int,
    step_seconds: float,
) -> bool:
    """Send a whole response, and return once the ASGI server has taken all of it.

    If the client does not take `step_bytes` in `step_seconds`, the response is left without its end, for which the ASGI
    server closes the connection. Returns False then.
    """
    if len(body) <= PIECE_BYTES:
        await respond(send, status, body, content_type, headers)
        return True
    try:
        for step in range(0, len(body), step_bytes):
            async with asyncio.timeout(step_seconds):
                if step == 0:
                    await _start(send, status, body, content_type, headers)
                end = min(step + step_bytes, len(body))
                for start in range(step, end, PIECE_BYTES):
                    piece_end = min(start + PIECE_BYTES, end)
                    has_more = piece_end < len(body)
                    await send({"type": "http.response.body", "body": body[start:piece_end], "more_body": has_more})
    except TimeoutError:
        return False
    return True


async def _start(send: Send, status: int, body: bytes, content_type: bytes, headers: Headers) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", content_type),
                (b"content-length", str(len(body)).encode()),
                *COMMON_HEADERS,
                *headers,
            ],
        }
    )
