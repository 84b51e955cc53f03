"""JSON-RPC messages between bytes and types: one function for the way in, one for the way out.

Spec: 2025-11-25 basic#messages, JSON-RPC 2.0 sections 4 and 5.
"""

import logging
from typing import Any, Final

import pydantic_core
from mcp.shared.dispatcher import coerce_request_id
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCResponse,
    RequestId,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from gateway.exceptions import InvalidMessage

__all__ = [
    "JSONRPCMessage",
    "error_body",
    "json_body",
    "message_body",
    "parse_message",
    "request_key",
    "require_json",
]

logger = logging.getLogger(__name__)

NOT_WRITABLE: Final = "The server's answer cannot be written as JSON."


def parse_message(body: bytes) -> JSONRPCMessage:
    """Read one JSON-RPC message.

    Raises:
        InvalidMessage: it is not JSON in UTF-8, a batch, or no message that MCP allows.
    """
    raw = require_json(body)
    if isinstance(raw, list):
        # Spec 2025-06-18 changelog: batching was removed.
        raise InvalidMessage("Batches are not supported. Send one message a request.", INVALID_REQUEST)
    if isinstance(raw, dict) and "method" in raw and "id" in raw and not _is_request_id(raw["id"]):
        # Spec 2025-11-25 basic#requests: the id MUST be a string or integer, and not null. Unchecked, the SDK's
        # models would take such a request for a notification and it would never be answered.
        raise InvalidMessage("A request's id must be a string or an integer.", INVALID_REQUEST)
    try:
        return jsonrpc_message_adapter.validate_python(raw, by_name=False)
    except ValidationError:
        raise InvalidMessage("The body is not a JSON-RPC 2.0 message.", INVALID_REQUEST) from None


def require_json(body: bytes) -> Any:
    """Read `body` as JSON.

    Raises:
        InvalidMessage: it is none, or not in UTF-8.
    """
    try:
        # NaN and Infinity are no JSON, and would be sent on as such.
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError:
        raise InvalidMessage("The body is not valid JSON in UTF-8.", PARSE_ERROR) from None


def _is_request_id(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))


def request_key(request_id: RequestId) -> RequestId:
    """What request ids are compared by. The SDK's dispatcher takes `1` and `"1"` for the same, so we do."""
    return coerce_request_id(request_id)


def error_body(code: int, message: str, request_id: RequestId | None = None) -> bytes:
    """A JSON-RPC error as a response body; `id` is null where the request's is not known."""
    told = ErrorData(code=code, message=_without_surrogates(message))
    error = JSONRPCError(jsonrpc="2.0", id=request_id, error=told)
    return error.model_dump_json(by_alias=True, exclude_none=request_id is not None, exclude_unset=True).encode()


def message_body(message: JSONRPCMessage) -> bytes:
    """A message of the server as it goes over the wire.

    An answer that cannot be written as JSON becomes an error with its id. If it were raised, the SDK (mcp 2.3) would
    answer for a result with code 0 and the exception's text, and end the session for an error.

    Raises:
        ValueError: a request or a notification cannot be written; whoever sends it is told.
    """
    try:
        return message.model_dump_json(by_alias=True, exclude_unset=True).encode()
    except ValueError:
        try:
            return json_body(message.model_dump(by_alias=True, exclude_unset=True))
        except ValueError as error:
            if isinstance(message, JSONRPCResponse):
                logger.warning("A result cannot be written as JSON (%s)", type(error).__name__)
                return error_body(INTERNAL_ERROR, NOT_WRITABLE, message.id)
            if isinstance(message, JSONRPCError):
                return error_body(message.error.code, message.error.message, message.id)
            raise


def json_body(value: Any) -> bytes:
    """`value` as JSON in UTF-8; lone surrogates, as file names may have them, as `\\udce9`.

    Raises:
        ValueError: it holds an object that is no JSON.
    """
    try:
        return pydantic_core.to_json(value)
    except ValueError:
        return pydantic_core.to_json(_without_surrogates(value))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    return value
