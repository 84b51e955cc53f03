"""Refuses requests: the one table from an error to its HTTP response, and the counting of refusals.

Elsewhere: what our Daphne refuses before there is a request (`gateway.serving`), what a relay answers for a process
that it cannot reach (`gateway.fleet.relay`), and calls beyond a server's limits (`gateway.instances.calls`).
"""

import json
from typing import Any, Final

from mcp_types import INTERNAL_ERROR, INVALID_REQUEST, RequestId

from gateway import signals
from gateway.exceptions import (
    AuthenticationUnavailable,
    BodyTimeout,
    BodyTooLarge,
    DuplicateRequestId,
    GatewayError,
    InstanceLimitReached,
    InstanceUnavailable,
    InvalidMessage,
    InvalidSessionKey,
    MessageBudgetFull,
    MessageTooLarge,
    NotOpenToNetwork,
    NotPermitted,
    OutOfScope,
    ServerDisabled,
    SessionBacklogFull,
    SessionLimitReached,
    SessionsUnavailable,
    ToolOutOfScope,
    TooManyConnections,
    TooManyRequests,
    Unauthenticated,
    UnknownKey,
    UnknownServer,
    WastefulBody,
)
from gateway.http.asgi import Headers, Send
from gateway.http.responses import respond
from gateway.jsonrpc import error_body

RETRY_AFTER_SECONDS: Final = 10
"""How many seconds a client that got a 503 should wait before it tries again."""

_RETRY: Final = ((b"retry-after", str(RETRY_AFTER_SECONDS).encode()),)

_ANSWERS: Final[dict[type[GatewayError], tuple[int, str, Headers]]] = {
    Unauthenticated: (401, "unauthenticated", ()),
    OutOfScope: (403, "out_of_scope", ()),
    ToolOutOfScope: (403, "out_of_scope", ()),
    NotOpenToNetwork: (403, "not_open_to_network", ()),
    NotPermitted: (403, "not_permitted", ()),
    UnknownKey: (404, "unknown_key", ()),
    TooManyRequests: (429, "rate_limit", ()),
    AuthenticationUnavailable: (503, "authentication_unavailable", _RETRY),
    InvalidSessionKey: (400, "bad_session_key", ()),
    UnknownServer: (404, "unknown_server", ()),
    ServerDisabled: (503, "server_disabled", _RETRY),
    InstanceLimitReached: (503, "instance_limit", _RETRY),
    InstanceUnavailable: (503, "instance_unavailable", _RETRY),
    DuplicateRequestId: (400, "duplicate_request_id", ()),
    SessionLimitReached: (503, "session_limit", _RETRY),
    SessionsUnavailable: (503, "sessions_unavailable", _RETRY),
    SessionBacklogFull: (503, "session_backlog", _RETRY),
    MessageBudgetFull: (503, "message_budget", _RETRY),
    BodyTooLarge: (413, "body_too_large", ()),
    BodyTimeout: (408, "body_timeout", ()),
    WastefulBody: (400, "wasteful_body", ()),
    TooManyConnections: (503, "too_many_connections", _RETRY),
    MessageTooLarge: (413, "message_too_large", ()),
    InvalidMessage: (400, "invalid_message", ()),
}
"""Error -> status, reason in the metrics, extra headers."""


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
    """Answer with the response that the table has for `error`, and count it."""
    status, body, headers = count_refusal(error, as_message=as_message)
    await respond(send, status, body, b"application/json", headers)


def count_refusal(
    error: GatewayError, *, as_message: bool = False, request_id: RequestId | None = None
) -> tuple[int, bytes, Headers]:
    """Count a refusal; return the status, body and extra headers of its response.

    With `as_message` the body is a JSON-RPC error, for clients that expect a message. `request_id` is the message's id
    where it is known.
    """
    status, reason, headers = next(_ANSWERS[cls] for cls in type(error).__mro__ if cls in _ANSWERS)
    signals.request_refused.send_robust(None, reason=reason, error=error)
    if isinstance(error, InvalidMessage):
        body = error_body(error.code, str(error), request_id if error.request_id is None else error.request_id)
    elif as_message:
        body = error_body(INTERNAL_ERROR if status >= 500 else INVALID_REQUEST, str(error), request_id)
    else:
        body = json.dumps({"error": str(error)}).encode()
    return status, body, (*headers, *error.headers)


async def refuse_method(send: Send, allowed: str) -> None:
    """Answer 405. `allowed`: the methods that the resource has, separated by commas."""
    await refuse(send, 405, "method_not_allowed", f"This resource answers {allowed}.", [(b"allow", allowed.encode())])
