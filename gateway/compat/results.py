"""What version 1 handlers return, as results that version 2 can send."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import mcp_types as types
from pydantic import BaseModel

from gateway.compat.models import as_url

LISTS: Final[Mapping[str, tuple[str, type[BaseModel]]]] = MappingProxyType(
    {
        "tools/list": ("tools", types.Tool),
        "resources/list": ("resources", types.Resource),
        "resources/templates/list": ("resourceTemplates", types.ResourceTemplate),
        "prompts/list": ("prompts", types.Prompt),
    }
)
"""Lists whose items may have fields that the protocol does not know: the list's key, and the model of an item."""


def tool_result(returned: Any) -> types.Result:
    """Return the result of a tool, by version 1's rules for what its handler may return."""
    match returned:
        case types.Result():
            return returned
        case BaseModel():
            return types.CallToolResult(content=[returned])  # type: ignore[list-item]  # checked by the model
        case (content, None | dict() as structured) if isinstance(returned, tuple):
            return types.CallToolResult(content=list(content), structured_content=structured)
        case dict():
            text = json.dumps(returned, indent=2)
            return types.CallToolResult(content=[types.TextContent(text=text)], structured_content=returned)
        case Iterable():
            return types.CallToolResult(content=list(returned))
        case _:
            return tool_error(f"Unexpected return type from tool: {type(returned).__name__}")


def tool_error(text: str) -> types.CallToolResult:
    """Return the result of a tool that failed."""
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=True)


def resource_result(uri: object, returned: Any) -> types.ReadResourceResult:
    """Return the contents of a resource, by version 1's rules for what its handler may return.

    Raises:
        ValueError: it may not return that.
    """
    match returned:
        case str() | bytes():
            return types.ReadResourceResult(contents=[_resource_contents(uri, returned)])
        case Iterable():
            contents = [
                _resource_contents(uri, item.content, item.mime_type, getattr(item, "meta", None)) for item in returned
            ]
            return types.ReadResourceResult(contents=contents)
        case _:
            raise ValueError(f"Unexpected return type from read_resource: {type(returned)}")


def _resource_contents(
    uri: object, data: str | bytes, mime_type: str | None = None, meta: dict[str, Any] | None = None
) -> types.TextResourceContents | types.BlobResourceContents:
    if isinstance(data, str):
        return types.TextResourceContents(uri=str(uri), text=data, mime_type=mime_type or "text/plain", _meta=meta)
    blob = base64.b64encode(data).decode()
    mime_type = mime_type or "application/octet-stream"
    return types.BlobResourceContents(uri=str(uri), blob=blob, mime_type=mime_type, _meta=meta)


def to_wire(method: str, result: Any, *, lists_output_schemas: bool = False) -> Any:
    """Dump the result of `method`. What version 2 would drop or refuse in lists is kept in `_meta`."""
    if not isinstance(result, BaseModel) or isinstance(result, types.ErrorData):
        return result
    # serialize_as_any: a view may have more fields than the model that the result declares.
    wire = result.model_dump(by_alias=True, mode="json", exclude_none=True, serialize_as_any=True, warnings=False)
    if method in LISTS:
        key, model = LISTS[method]
        unlisted = set() if lists_output_schemas else {"outputSchema"}
        wire[key] = [_with_unknown_in_meta(item, model, unlisted) for item in wire[key]]
    return wire


def _with_unknown_in_meta(item: dict[str, Any], model: type[BaseModel], unlisted: set[str]) -> dict[str, Any]:
    known = {info.alias or name for name, info in model.model_fields.items()} - unlisted
    kept = {key: value for key, value in item.items() if key in known}
    moved = {key: value for key, value in item.items() if key not in known}
    if model is types.Resource:
        kept["uri"] = str(as_url(item["uri"]))
    if model is types.Tool:
        kept["inputSchema"] = _listable_schema(item["inputSchema"])
        if kept["inputSchema"] != item["inputSchema"]:
            moved["inputSchema"] = item["inputSchema"]
    if moved:
        kept["_meta"] = moved | item.get("_meta", {})
    return kept


def _listable_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Repair a schema for which version 2 would refuse the whole list: it checks four keywords at the root."""
    repaired = {**schema, "type": "object"}
    properties, required = repaired.get("properties"), repaired.get("required")
    if properties is not None and not (
        isinstance(properties, dict) and all(isinstance(value, (dict, bool)) for value in properties.values())
    ):
        del repaired["properties"]
    if required is not None and not (isinstance(required, list) and all(isinstance(name, str) for name in required)):
        del repaired["required"]
    if not isinstance(repaired.get("$schema", ""), str):
        del repaired["$schema"]
    return repaired
