"""Version 1's names in the SDK's modules, for the modules that need them.

`import_sdk` returns views of the SDK's modules. A view looks for version 1's name first, then for version 2's. Modules
of version 1 servers get an `__import__` that calls it (see `catalog.server_modules`). The SDK itself is not patched:
other modules import what they always did.

Version 2 has no `mcp.server.fastmcp`. `fastmcp.modules` provides it.
"""

from __future__ import annotations

import collections.abc
import datetime
import importlib
import importlib.util
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType, ModuleType
from typing import Any, Final

import mcp_types
import pydantic
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.session import ServerSession
from mcp.shared.exceptions import UrlElicitationRequiredError
from pydantic import BaseModel
from pydantic.networks import UrlConstraints

from gateway.compat.context import RequestContext, request_ctx
from gateway.compat.fastmcp.modules import ROOT as FASTMCP
from gateway.compat.fastmcp.modules import fastmcp_module
from gateway.compat.fastmcp.server import FastMCP
from gateway.compat.models import ENVELOPES, McpError, envelope_of, view_of
from gateway.compat.server import CompatServer

_STREAMS: Final = {
    "MemoryObjectReceiveStream": MemoryObjectReceiveStream,
    "MemoryObjectSendStream": MemoryObjectSendStream,
}

# Version 1 imported these names into `mcp.types` for its own use, and published modules import them from there.
_LEAKED_BY_TYPES: Final = {
    "Annotated": typing.Annotated,
    "Any": typing.Any,
    "AnyUrl": pydantic.AnyUrl,
    "BaseModel": pydantic.BaseModel,
    "Callable": collections.abc.Callable,
    "ConfigDict": pydantic.ConfigDict,
    "Field": pydantic.Field,
    "FileUrl": pydantic.FileUrl,
    "Final": typing.Final,
    "Generic": typing.Generic,
    "Literal": typing.Literal,
    "RootModel": pydantic.RootModel,
    "TypeAlias": typing.TypeAlias,
    "TypeVar": typing.TypeVar,
    "UrlConstraints": UrlConstraints,
    "datetime": datetime.datetime,
}

_NAMES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "mcp": {"McpError": McpError},
        "mcp.types": {
            **_LEAKED_BY_TYPES,
            "AnyFunction": collections.abc.Callable[..., Any],
            "Content": mcp_types.ContentBlock,
            "Cursor": str,
            "ResourceReference": view_of(mcp_types.ResourceTemplateReference),
        },
        "mcp.server": {"FastMCP": FastMCP, "Server": CompatServer, "fastmcp": fastmcp_module(FASTMCP)},
        "mcp.server.lowlevel": {"Server": CompatServer},
        "mcp.server.lowlevel.server": {
            **_STREAMS,
            "AnyUrl": pydantic.AnyUrl,
            "McpError": McpError,
            "ReadResourceContents": ReadResourceContents,
            "RequestContext": RequestContext,
            "Server": CompatServer,
            "ServerSession": ServerSession,
            "UrlElicitationRequiredError": UrlElicitationRequiredError,
            "request_ctx": request_ctx,
        },
        "mcp.server.sse": _STREAMS,
        "mcp.server.stdio": _STREAMS,
        "mcp.shared.context": {"RequestContext": RequestContext},
        "mcp.shared.exceptions": {"McpError": McpError},
    }
)
"""Names that version 2 lacks, or uses for something else. By module."""

Import = Callable[..., ModuleType]


def import_sdk(name: str, fromlist: Sequence[str]) -> ModuleType:
    """Import `mcp` or one of its submodules with version 1's names beside version 2's, as `__import__` does."""
    if name == FASTMCP or name.startswith(f"{FASTMCP}."):
        module = fastmcp_module(name)
        return module if fromlist else _view("mcp")
    importlib.import_module(name)
    if not fromlist:
        return _view("mcp")  # `import mcp.types` binds `mcp`; its attributes lead to the rest
    view = _view(name)
    for attribute in fromlist:
        if attribute != "*" and not hasattr(view, attribute):
            _import_submodule(name, attribute)
    return view


def _import_submodule(package: str, attribute: str) -> None:
    name = f"{package}.{attribute}"
    if hasattr(sys.modules[package], "__path__") and importlib.util.find_spec(name) is not None:
        importlib.import_module(name)


@cache
def _view(name: str) -> ModuleView:
    return ModuleView(sys.modules[name], _NAMES.get(name, MappingProxyType({})))


class ModuleView(ModuleType):
    """A module of the SDK with version 1's names.

    Attributes that are not found here are read from the SDK's module. Attributes that are set stay here.
    """

    def __init__(self, module: ModuleType, names: Mapping[str, Any]) -> None:
        super().__init__(module.__name__, module.__doc__)
        self.__viewed_module__ = module
        self.__file__ = getattr(module, "__file__", None)
        self.__spec__ = module.__spec__
        if hasattr(module, "__path__"):
            self.__path__ = module.__path__
        public = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
        self.__all__ = [*public, *(key for key in names if key not in public)]
        # Last, because these must win over what is set above.
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        module = self.__dict__["__viewed_module__"]
        try:
            value = getattr(module, name)
        except AttributeError as exc:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}", name=name, obj=self) from exc
        converted = _as_version_1(name, value)
        if converted is not value:
            self.__dict__[name] = converted  # views are kept; all else is read from the module each time
        return converted

    def __dir__(self) -> list[str]:
        return sorted({*dir(self.__viewed_module__), *self.__dict__})


def _as_version_1(name: str, value: Any) -> Any:
    if isinstance(value, ModuleType):
        is_sdk = value.__name__.startswith("mcp.") and sys.modules.get(value.__name__) is value
        return _view(value.__name__) if is_sdk else value
    if name in ENVELOPES and value is getattr(mcp_types, name):
        return envelope_of(name)
    if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__.startswith("mcp_types."):
        return view_of(value)
    return value
