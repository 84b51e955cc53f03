"""Version 1's import names for one module at a time.

A module that is executed with `compat_builtins()` as its `__builtins__` gets an `__import__` of its own: `import mcp…`
gives it views of the SDK's modules, in which version 1's names are found first and version 2's otherwise. Nothing that
anybody else imports changes, imports inside functions work (a function keeps the builtins of its module), and threads
do not meet, because nothing is patched.

Helper modules beside a server may use version 1's names as well (`src/auth/…`, a `tools.py` next to `main.py`). Those
whose file lies under one of the `project_roots` are executed with the same builtins when a module of the project is the
first to import them. Not covered: helpers that are loaded with `importlib.import_module`, or that somebody imported in
the ordinary way before.

Version 1's `mcp.server.fastmcp` is not offered: version 2 renamed it `MCPServer` and changed its constructor and its
results, and an alias would only fail later. Importing it says so.
"""

from __future__ import annotations

import builtins
import collections.abc
import datetime
import importlib
import importlib.util
import sys
import threading
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, MappingProxyType, ModuleType
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
from gateway.compat.models import ENVELOPES, McpError, envelope_of, view_of
from gateway.compat.server import CompatServer

_STREAMS: Final = {
    "MemoryObjectReceiveStream": MemoryObjectReceiveStream,
    "MemoryObjectSendStream": MemoryObjectSendStream,
}

# What version 1 imported for itself in `mcp.types`, and modules in the field import from there.
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
        "mcp.server": {"Server": CompatServer},
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
"""Version 1's names that version 2 lacks or means otherwise, by module."""

_FASTMCP_IS_GONE: Final = (
    "{name} is version 1's FastMCP, which version 2 of the MCP SDK replaced by mcp.server.MCPServer; "
    "move this server to MCPServer, or use the FastMCP package"
)

Import = Callable[..., ModuleType]


def compat_builtins(project_roots: Iterable[Path] = (), *, uses_bytecode: bool = True) -> dict[str, Any]:
    """Return builtins with which a module's imports of `mcp` find version 1's names.

    Put them into the module's globals before it is executed: `module.__dict__["__builtins__"] = compat_builtins()`.
    One dictionary serves any number of modules. `project_roots` are the folders whose own modules get it as well when
    such a module imports them, without `uses_bytecode` straight from their sources.
    """
    namespace = dict(vars(builtins))
    roots = tuple(Path(root).resolve() for root in project_roots)
    helpers = _ProjectModules(roots, namespace, uses_bytecode=uses_bytecode) if roots else None

    def import_for_module(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if level == 0 and (name == "mcp" or name.startswith("mcp.")):
            return _import_view(name, fromlist or ())
        if helpers is not None:
            helpers.load(name, globals or {}, fromlist or (), level)
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    namespace["__import__"] = import_for_module
    return namespace


def _import_view(name: str, fromlist: Sequence[str]) -> ModuleType:
    if name == "mcp.server.fastmcp" or name.startswith("mcp.server.fastmcp."):
        raise ModuleNotFoundError(_FASTMCP_IS_GONE.format(name=name), name=name)
    if name == "mcp.server" and (gone := {"FastMCP", "fastmcp"} & set(fromlist)):
        raise ImportError(_FASTMCP_IS_GONE.format(name=f"mcp.server.{gone.pop()}"), name=name)
    importlib.import_module(name)
    if not fromlist:
        return _view("mcp")  # `import mcp.types` binds `mcp`, and reaches the rest by attributes
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
    """A module of the SDK as version 1's code expects it. Reading falls back to the module; writing stays here."""

    def __init__(self, module: ModuleType, names: Mapping[str, Any]) -> None:
        super().__init__(module.__name__, module.__doc__)
        self.__viewed_module__ = module
        self.__file__ = getattr(module, "__file__", None)
        self.__spec__ = module.__spec__
        if hasattr(module, "__path__"):
            self.__path__ = module.__path__
        public = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
        self.__all__ = [*public, *(key for key in names if key not in public)]
        # Written last: these are found without __getattr__.
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        module = self.__dict__["__viewed_module__"]
        try:
            value = getattr(module, name)
        except AttributeError as exc:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}", name=name, obj=self) from exc
        converted = _as_version_1(name, value)
        if converted is not value:
            self.__dict__[name] = converted  # a view is made once; everything else is read afresh
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


class FreshSourceLoader(SourceFileLoader):
    """Compiles what the file says now. Bytecode counts as fresh where size and second of the change are the same."""

    def get_code(self, fullname: str) -> CodeType:
        """Neither read bytecode nor write any."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _ProjectModules:
    """Executes the modules under some folders with given builtins, where a project module asks for them first."""

    def __init__(self, roots: Sequence[Path], namespace: dict[str, Any], *, uses_bytecode: bool) -> None:
        self._uses_bytecode = uses_bytecode
        self._roots = roots
        self._namespace = namespace
        # Reentrant: a helper imports helpers. Nothing that runs under an import lock of Python's waits for this one,
        # because only modules that are executed here call load().
        self._lock = threading.RLock()
        self._known_paths: dict[str, bool] = {}

    def load(self, name: str, globals: Mapping[str, object], fromlist: Sequence[str], level: int) -> None:
        """Load what an import statement names, as far as it lies in the project. Says nothing about the rest."""
        if level:
            package = globals.get("__package__")
            if not isinstance(package, str) or not package:
                return
            try:
                name = importlib.util.resolve_name("." * level + name, package)
            except ImportError:
                return  # the ordinary import reports it
        with self._lock:
            parts = name.split(".")
            for count in range(1, len(parts) + 1):
                if not self._load_one(".".join(parts[:count])):
                    return
            if hasattr(sys.modules.get(name), "__path__"):
                for attribute in fromlist:
                    if attribute != "*" and not hasattr(sys.modules[name], attribute):
                        self._load_one(f"{name}.{attribute}")

    def _load_one(self, name: str) -> bool:
        """Return whether the module is loaded and belongs to the project, so that its submodules may."""
        loaded = sys.modules.get(name)
        if loaded is not None:
            paths = getattr(loaded, "__path__", None) or [getattr(loaded, "__file__", None) or ""]
            return any(self._is_in_project(path) for path in paths)
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, AttributeError, ValueError):
            return False
        if spec is None or spec.loader is None:
            # A namespace package (a folder without __init__.py) has nothing to execute: the ordinary import makes it.
            if spec is None or not any(self._is_in_project(path) for path in spec.submodule_search_locations or ()):
                return False
            importlib.import_module(name)
            return True
        if not self._is_in_project(spec.origin or "") or not hasattr(spec.loader, "get_code"):
            return False
        if not self._uses_bytecode and type(spec.loader) is SourceFileLoader:
            spec.loader = FreshSourceLoader(name, spec.loader.path)
        module = importlib.util.module_from_spec(spec)
        module.__dict__["__builtins__"] = self._namespace
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
        return True

    def _is_in_project(self, path: str) -> bool:
        # Remembered, because an import inside a handler asks on every call.
        known = self._known_paths.get(path)
        if known is None:
            resolved = Path(path).resolve()
            # A virtual environment inside the project is not the project's code.
            known = "site-packages" not in resolved.parts and any(resolved.is_relative_to(root) for root in self._roots)
            self._known_paths[path] = known = known and Path(path).is_absolute()
        return known
