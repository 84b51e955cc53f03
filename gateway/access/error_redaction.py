"""SDK middleware that keeps the caller's key out of the errors of a server, on every transport and in both modes.

Clients show errors to people, log them and pass them to models. A server that puts its API key into the text of an
exception must not publish it that way. Not here: what is logged (`redaction`).
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError

from gateway.access.identity import current_identity
from gateway.access.redaction import redact

_KEPT_FIELDS: Final = frozenset({"annotations", "blob", "data", "mimeType", "resultType", "type"})
"""Fields of a result that hold words of the protocol or encoded bytes. In open mode a key may look like one of them."""


class KeyInError(Exception):
    """A handler raised an exception whose text contains its caller's key. The text of this one does not."""


async def redact_errors(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Handle one message. The caller's key is removed from what the handler raises and from error results."""
    # The identity of this request: several identities may share one server.
    identity = current_identity.get()
    if identity is None or not identity.api_key:
        return await call_next(ctx)
    api_key = identity.api_key
    try:
        result = await call_next(ctx)
    except Exception as error:
        text = str(error)
        redacted = redact(text, api_key)
        if isinstance(error, MCPError):
            data = _redacted(error.data, api_key)
            if redacted == text and data == error.data:
                raise
            raise MCPError(code=error.code, message=redacted, data=data) from error
        if redacted == text:
            raise
        raise KeyInError(redacted) from error
    if isinstance(result, dict) and result.get("isError"):
        return {name: _redacted_field(name, value, api_key) for name, value in result.items()}
    return result


def _redacted_field(name: str, value: Any, api_key: str) -> Any:
    """A field of a result without the key."""
    if name in _KEPT_FIELDS:
        return value
    return _redacted(value, api_key, _KEPT_FIELDS if name == "content" else ())


def _redacted(value: Any, api_key: str, kept: Collection[str] = ()) -> Any:
    """A JSON value without the key, wherever the key stands in it. Fields of objects that are in `kept` stay as is."""
    if isinstance(value, str):
        return redact(value, api_key)
    if isinstance(value, Mapping):
        return {
            redact(name, api_key) if isinstance(name, str) and not kept else name: (
                part if name in kept else _redacted(part, api_key, kept)
            )
            for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redacted(part, api_key, kept) for part in value]
    return value
