"""Protocol models with the interface that version 1 gave them.

A view of a version 2 model is a subclass of it that accepts and shows more:

* It keeps keyword arguments that are not declared, because version 1 allowed extra fields everywhere.
* Its fields can be read by their wire names (`tool.inputSchema`) as well as by version 2's names.
* Its `uri` may be a pydantic URL.
* `isinstance(x, View)` is also true for instances that the SDK made, because modules test those.

Two differences from version 1 remain: `uri` reads as `str` (version 1: `AnyUrl`), and `model_dump()` without
`by_alias` has version 2's snake_case keys.
"""

from __future__ import annotations

from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Final, cast

import mcp_types
from mcp.shared.exceptions import MCPError
from pydantic import AnyUrl, BaseModel, BeforeValidator, ConfigDict, RootModel, ValidationError


class ResourceUrl(AnyUrl):
    """The `AnyUrl` that handlers receive. It is also equal to the same URL as text.

    Handlers of version 1 compare `resource.uri == uri`. Both were `AnyUrl` then; today a view's `uri` is text. The
    hash is that of `AnyUrl`.
    """

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AnyUrl):
            return str(self) == str(other)
        if isinstance(other, str):
            return str(self) == str(as_url(other))
        return NotImplemented

    __hash__ = AnyUrl.__hash__


def as_url(text: str) -> ResourceUrl | str:
    """Return `text` as a URL, or unchanged if it is not a URL (`hunter_io://…`: URLs do not allow this scheme)."""
    try:
        return ResourceUrl(text)
    except ValidationError:
        return text


def _as_text(uri: object) -> object:
    return str(uri) if isinstance(uri, AnyUrl) else uri


class McpError(MCPError):
    """Version 1's `McpError(ErrorData(…))`. Version 2's `MCPError` takes the fields instead."""

    def __init__(self, error: mcp_types.ErrorData) -> None:
        super().__init__(error.code, error.message, error.data)
        self.error = error


class RequestMeta(BaseModel):
    """Version 1's `RequestParams.Meta`, an object with attributes. Version 2 has a dictionary with snake_case keys."""

    model_config = ConfigDict(extra="allow")

    progressToken: str | int | None = None


def request_meta(meta: Any) -> RequestMeta | None:
    """Return version 2's `_meta` dictionary of a request as version 1's object."""
    if meta is None:
        return None
    values = dict(meta)
    token = values.pop("progress_token", None)
    return RequestMeta.model_construct(progressToken=token, **values)


class _ViewMeta(type(BaseModel)):  # type: ignore[misc]  # pydantic's metaclass has no public name
    def __instancecheck__(cls, instance: object) -> bool:
        # Only views have this attribute in their own `__dict__`. A class that a module derives from a view is ordinary.
        base = cls.__dict__.get("__viewed_model__")
        return isinstance(instance, base) if base is not None else bool(super().__instancecheck__(instance))


class _View(BaseModel, metaclass=_ViewMeta):
    def __getattr__(self, name: str) -> Any:
        field = _field_of_wire_name(type(self), name)
        if field is not None:
            return getattr(self, field)
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic hides it from type checkers

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(_field_of_wire_name(type(self), name) or name, value)


def _field_of_wire_name(model: type[BaseModel], name: str) -> str | None:
    if name.islower():  # names that both versions share, and pydantic's own
        return None
    for field, info in model.model_fields.items():
        if info.alias == name:
            return field
    return None


# Early releases of version 1 did not declare `outputSchema`: it was an extra field and could have any type.
_OTHER_FIELDS: Final = MappingProxyType({"Tool": {"output_schema": (Any, None)}})


@cache
def view_of(model: type[BaseModel]) -> type[BaseModel]:
    """Return the view of a version 2 model. The same model always gets the same view."""
    if model.__pydantic_generic_metadata__["parameters"] or issubclass(model, (RootModel, _View)):
        return model
    annotations: dict[str, Any] = {}
    namespace: dict[str, Any] = {
        "__module__": "mcp.types",
        "__qualname__": model.__name__,
        "__doc__": model.__doc__,
        "__viewed_model__": model,
        "__annotations__": annotations,
        "model_config": ConfigDict(extra="allow"),
    }
    uri = model.model_fields.get("uri")
    if uri is not None and uri.annotation is str:
        annotations["uri"] = Annotated[str, BeforeValidator(_as_text)]
    for name, (annotation, default) in _OTHER_FIELDS.get(model.__name__, {}).items():
        annotations[name] = annotation
        namespace[name] = default
    return cast("type[BaseModel]", _ViewMeta(model.__name__, (_View, model), namespace))


def view_instance(instance: BaseModel) -> Any:
    """Return a shallow copy of `instance` that is an instance of the view of its class."""
    return view_of(type(instance)).model_construct(instance.model_fields_set, **instance.__dict__)


class _EnvelopeMeta(type(BaseModel)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: object) -> bool:
        union = cls.__dict__.get("__viewed_union__")
        return bool(super().__instancecheck__(instance)) or (union is not None and isinstance(instance, union))


class Envelope(RootModel[Any], metaclass=_EnvelopeMeta):
    """A root model around a result or a notification, as version 1 had them (`ServerResult(EmptyResult())`)."""


@cache
def envelope_of(name: str) -> type[Envelope]:
    """Return the root model of version 1 for a name that is a union in version 2 (`ServerResult`)."""
    union = getattr(mcp_types, name)
    namespace = {"__module__": "mcp.types", "__qualname__": name, "__viewed_union__": union}
    return cast("type[Envelope]", _EnvelopeMeta(name, (Envelope,), namespace))


ENVELOPES: Final = frozenset(
    {
        "ClientNotification",
        "ClientRequest",
        "ClientResult",
        "JSONRPCMessage",
        "ServerNotification",
        "ServerRequest",
        "ServerResult",
    }
)


def unwrap(value: Any) -> Any:
    """Return the value inside an envelope. Return any other value unchanged."""
    return value.root if type(value).__dict__.get("__viewed_union__") is not None else value
