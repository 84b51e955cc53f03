"""JSON-RPC messages: from bytes to types for what clients send, and back for what servers send.

Spec: 2025-11-25 basic#messages, JSON-RPC 2.0 sections 4 and 5.
"""

import json
import logging
import re
from dataclasses import dataclass
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
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
    jsonrpc_message_adapter,
)
from pydantic import TypeAdapter, ValidationError

from gateway.exceptions import InvalidMessage

__all__ = [
    "ANSWERS",
    "BATCH_VERSION",
    "INITIALIZE",
    "Batch",
    "JSONRPCMessage",
    "batch_from",
    "error_body",
    "is_initialize",
    "is_request_id",
    "json_body",
    "message_body",
    "message_from",
    "parse_message",
    "request_key",
    "require_json",
    "result_body",
]

logger = logging.getLogger(__name__)

ANSWERS: Final = (JSONRPCResponse, JSONRPCError)
"""The messages that answer a request. (For `isinstance`: a union would be made anew each time.)"""

_ADAPTERS: Final[dict[type[JSONRPCMessage], TypeAdapter[Any]]] = {
    kind: TypeAdapter(kind) for kind in (JSONRPCRequest, JSONRPCNotification, JSONRPCResponse, JSONRPCError)
}

INITIALIZE: Final = "initialize"

BATCH_VERSION: Final = "2025-03-26"
"""The only protocol version that has batches. Spec 2025-03-26 basic#batching."""

NOT_JSON: Final = "The body is not valid JSON in UTF-8."

NOT_WRITABLE: Final = "The server's answer cannot be written as JSON."

_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def parse_message(body: bytes) -> JSONRPCMessage:
    """Read one JSON-RPC message.

    Raises:
        InvalidMessage: the body is not JSON in UTF-8, or not a message that MCP allows.
    """
    return message_from(require_json(body))


def message_from(raw: Any) -> JSONRPCMessage:
    """Check one decoded JSON-RPC message.

    Raises:
        InvalidMessage: it is not a message that MCP allows.
    """
    if isinstance(raw, list):
        # Spec 2025-06-18 changelog: batching was removed.
        raise InvalidMessage(f"Only {BATCH_VERSION} has batches. Send one message in each request.", INVALID_REQUEST)
    is_request = isinstance(raw, dict) and "method" in raw and "id" in raw
    if is_request and not is_request_id(raw["id"]):
        # Spec 2025-11-25 basic#requests: the id MUST be a string or integer, and not null. Without this check the
        # SDK's models would take the request for a notification, and it would never be answered.
        raise InvalidMessage("A request's id must be a string of valid Unicode or an integer.", INVALID_REQUEST)
    if is_request:
        # Most messages are requests. The adapter tries all four kinds, which takes three times as long.
        try:
            return JSONRPCRequest.model_validate(raw, by_name=False)
        except ValidationError:
            pass  # it may be a message of another kind, with a member too many
    try:
        return jsonrpc_message_adapter.validate_python(raw, by_name=False)
    except ValidationError:
        raise InvalidMessage("The body is not a JSON-RPC 2.0 message.", INVALID_REQUEST) from None


@dataclass(frozen=True, slots=True)
class Batch:
    """The messages of one body."""

    messages: list[JSONRPCMessage]
    refusals: list[bytes]
    """The errors that answer what is not a message."""


def batch_from(raw: list[Any]) -> Batch:
    """Check the decoded messages of a batch, each by itself. Spec: JSON-RPC 2.0 section 6.

    Raises:
        InvalidMessage: the batch is empty.
    """
    if not raw:
        raise InvalidMessage("The batch is empty.", INVALID_REQUEST)
    batch = Batch([], [])
    for item in raw:
        try:
            if is_initialize(item):
                # Spec 2025-03-26 basic/lifecycle#initialization.
                raise InvalidMessage("initialize must not be part of a batch.", INVALID_REQUEST, _id_of(item))
            batch.messages.append(message_from(item))
        except InvalidMessage as error:
            batch.refusals.append(error_body(error.code, str(error), error.request_id))
    return batch


def _id_of(raw: dict[str, Any]) -> RequestId | None:
    return raw["id"] if is_request_id(raw["id"]) else None


def require_json(body: bytes) -> Any:
    """Decode `body` as JSON.

    Raises:
        InvalidMessage: it is not JSON, or not in UTF-8.
    """
    try:
        return _decode(body)
    except ValueError:
        # Half of a surrogate pair, as in a text that was cut in the middle of an emoji, is JSON (RFC 8259 section 8.2),
        # but pydantic_core (2.50) refuses it. The server gets it as it is, as with mcp 1.30 and the TypeScript SDK.
        if _SURROGATE_ESCAPE.search(body):
            return _decode_with_surrogates(body)
        raise InvalidMessage(NOT_JSON, PARSE_ERROR) from None


def _decode(body: bytes) -> Any:
    # NaN and Infinity are not JSON, and would be passed on as they are.
    return pydantic_core.from_json(body, allow_inf_nan=False)


def _decode_with_surrogates(body: bytes) -> Any:
    try:
        # The usual decoder checks everything else, such as the depth of nesting.
        _decode(_SURROGATE_ESCAPE.sub(rb"\\ufffd", body))
        return json.loads(body.decode("utf-8"))
    except ValueError:
        raise InvalidMessage(NOT_JSON, PARSE_ERROR) from None


def is_initialize(raw: Any) -> bool:
    """Whether a decoded message is an `initialize` request."""
    return isinstance(raw, dict) and raw.get("method") == INITIALIZE and "id" in raw


def opens_handshake(raw: Any) -> bool:
    """Whether a decoded message is an `initialize` request that proposes a protocol version, as the handshake does.

    A client of 2026-07-28 that calls the removed method `initialize` proposes none: its version stands in `_meta`.
    """
    params = raw.get("params") if is_initialize(raw) else None
    return isinstance(params, dict) and "protocolVersion" in params


def is_request_id(value: Any) -> bool:
    """Whether `value` may be a request's id: an integer, or a text that the answer can repeat."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
    return isinstance(value, int) and not isinstance(value, bool)


def request_key(request_id: RequestId) -> RequestId:
    """A request id in the form in which ids are compared: the SDK's dispatcher treats `1` and `"1"` as equal."""
    return coerce_request_id(request_id)


def error_body(code: int, message: str, request_id: RequestId | None = None) -> bytes:
    """A JSON-RPC error as a response body; `id` is null where the request's id is not known."""
    error = JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=code, message=_without_surrogates(message)))
    return error.model_dump_json(by_alias=True, exclude_none=request_id is not None, exclude_unset=True).encode()


def message_body(message: JSONRPCMessage) -> bytes:
    """A message of the server as bytes.

    An answer that cannot be written as JSON becomes an error with the same id. If the exception were raised, the SDK
    (mcp 2.3) would answer a result with code 0 and the exception's text, and would end the session for an error.

    Raises:
        ValueError: a request or a notification cannot be written. The handler that sends it gets this exception.
    """
    if isinstance(message, JSONRPCResponse):
        return result_body(message.id, message.result)
    try:
        # Not `model_dump_json`: it makes a text, which would have to be copied.
        return _ADAPTERS[type(message)].dump_json(message, by_alias=True, exclude_unset=True)
    except ValueError:
        try:
            return json_body(message.model_dump(by_alias=True, exclude_unset=True))
        except ValueError:
            if isinstance(message, JSONRPCError):
                return error_body(message.error.code, message.error.message, message.id)
            raise


def result_body(request_id: RequestId, result: dict[str, Any]) -> bytes:
    """The result of a request as bytes: what a `JSONRPCResponse` would make of it, at a third of the cost.

    A result that cannot be written as JSON becomes an error.
    """
    response = {"jsonrpc": "2.0", "id": request_id, "result": result}
    try:
        return json_body(response)
    except ValueError as error:
        logger.warning("A result cannot be written as JSON (%s)", type(error).__name__)
        return error_body(INTERNAL_ERROR, NOT_WRITABLE, request_id)


def json_body(value: Any) -> bytes:
    """`value` as JSON in UTF-8. A lone surrogate, which file names may contain, is written as `\\udce9`, NaN as null.

    Raises:
        ValueError: it contains an object that JSON cannot express.
    """
    try:
        return pydantic_core.to_json(value, inf_nan_mode="null")
    except ValueError:
        return pydantic_core.to_json(_without_surrogates(value), inf_nan_mode="null")


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    return value
