"""HTTP answers of the MCP routes: small JSON bodies, and the one table from an error to its answer.

Not here: event streams (`event_stream`), Django's pages (`views`).
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from mcp_types import INTERNAL_ERROR, INVALID_REQUEST

from gateway import signals
from gateway.exceptions import (
    AuthenticationUnavailable,
    BodyTooLarge,
    ClientDisconnected,
    DuplicateRequestId,
    GatewayError,
    InstanceLimitReached,
    InstanceUnavailable,
    InvalidMessage,
    InvalidSessionKey,
    NotOpenToNetwork,
    OutOfScope,
    ServerDisabled,
    SessionBacklogFull,
    SessionLimitReached,
    ToolOutOfScope,
    TooManyRequests,
    Unauthenticated,
    UnknownServer,
)
from gateway.transports.messages import error_body

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

RETRY_AFTER_SECONDS: Final = 10
"""When a client that was answered 503 should come back."""

DISCARD_BYTES: Final = 16 * 1024 * 1024
DISCARD_SECONDS: Final = 5.0
"""How much of a body that is too large, and for how long, is read and thrown away before it is refused."""

COMMON_HEADERS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_RETRY: Final = ((b"retry-after", str(RETRY_AFTER_SECONDS).encode()),)

_ANSWERS: Final[dict[type[GatewayError], tuple[int, str, Headers]]] = {
    Unauthenticated: (401, "unauthenticated", ()),
    OutOfScope: (403, "out_of_scope", ()),
    ToolOutOfScope: (403, "out_of_scope", ()),
    NotOpenToNetwork: (403, "not_open_to_network", ()),
    TooManyRequests: (429, "rate_limit", ()),
    AuthenticationUnavailable: (503, "authentication_unavailable", _RETRY),
    InvalidSessionKey: (400, "bad_session_key", ()),
    UnknownServer: (404, "unknown_server", ()),
    ServerDisabled: (503, "server_disabled", _RETRY),
    InstanceLimitReached: (503, "instance_limit", _RETRY),
    InstanceUnavailable: (503, "instance_unavailable", _RETRY),
    DuplicateRequestId: (400, "duplicate_request_id", ()),
    SessionLimitReached: (503, "session_limit", _RETRY),
    SessionBacklogFull: (503, "session_backlog", _RETRY),
    BodyTooLarge: (413, "body_too_large", ()),
    InvalidMessage: (400, "invalid_message", ()),
}
"""Error -> status, reason in the metrics, extra headers."""


async def respond(send: Send, status: int, body: bytes, content_type: bytes, headers: Headers = ()) -> None:
    """Send a whole response."""
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
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, status: int, reason: str, message: str, headers: Headers = ()) -> None:
    """Answer with an error as JSON and count it. `reason`: one of `metrics.REFUSAL_REASONS`."""
    signals.request_refused.send_robust(None, reason=reason)
    await respond(send, status, json.dumps({"error": message}).encode(), b"application/json", headers)


async def refuse_message(
    send: Send, status: int, reason: str, code: int, message: str, request_id: Any = None, headers: Headers = ()
) -> None:
    """Answer a client's message with a JSON-RPC error and count it."""
    signals.request_refused.send_robust(None, reason=reason)
    await respond(send, status, error_body(code, message, request_id), b"application/json", headers)


async def refuse_error(send: Send, error: GatewayError, *, as_message: bool = False) -> None:
    """Answer with what the table says of `error` and count it."""
    status, body, headers = count_refusal(error, as_message=as_message)
    await respond(send, status, body, b"application/json", headers)


def count_refusal(error: GatewayError, *, as_message: bool = False) -> tuple[int, bytes, Headers]:
    """Count a refusal; returns the status, body and extra headers of its answer.

    The body is a JSON-RPC error where that is what the client reads (`as_message`).
    """
    status, reason, headers = next(_ANSWERS[cls] for cls in type(error).__mro__ if cls in _ANSWERS)
    signals.request_refused.send_robust(None, reason=reason)
    if isinstance(error, InvalidMessage):
        body = error_body(error.code, str(error), error.request_id)
    elif as_message:
        body = error_body(INTERNAL_ERROR if status >= 500 else INVALID_REQUEST, str(error))
    else:
        body = json.dumps({"error": str(error)}).encode()
    return status, body, (*headers, *error.headers)


async def refuse_method(send: Send, allowed: str) -> None:
    """Answer 405. `allowed`: the methods that the resource has, comma-separated."""
    await refuse(send, 405, "method_not_allowed", f"This resource answers {allowed}.", [(b"allow", allowed.encode())])


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
