"""`importlib` as a server sees it: a name that is given as text means the same module as in an import statement."""

import builtins
import importlib
import importlib.util
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any, Protocol

from gateway.compat.imports import ModuleView


class _Importer(Protocol):
    def import_module(self, name: str) -> ModuleType:
        """Import the module that the server calls `name`."""

    def qualified(self, name: str) -> str:
        """Return the name of this module in `sys.modules`."""

    def source_loader(self, name: str, path: str) -> SourceFileLoader | None:
        """Return a loader for a file of the server; None for other files."""


class ImportlibView:
    """Imports `importlib` and its submodules for the modules of one server."""

    def __init__(self, importer: _Importer) -> None:
        self._importer = importer
        util = {"find_spec": self._find_spec, "spec_from_file_location": self._spec_from_file_location}
        self._util = ModuleView(importlib.util, util)
        self._importlib = ModuleView(importlib, {"import_module": self._import_module, "util": self._util})

    def load(self, name: str, fromlist: Sequence[str]) -> ModuleType:
        """Return what `__import__` returns for `importlib` or `importlib.…`."""
        module = builtins.__import__(name, fromlist=fromlist or ("__name__",))
        if not fromlist or name == "importlib":
            return self._importlib
        return self._util if name == "importlib.util" else module

    def _import_module(self, name: str, package: str | None = None) -> ModuleType:
        if name.startswith("."):
            return importlib.import_module(name, package and self._importer.qualified(package))
        return self._importer.import_module(name)

    def _find_spec(self, name: str, package: str | None = None) -> ModuleSpec | None:
        return importlib.util.find_spec(self._importer.qualified(name), package and self._importer.qualified(package))

    def _spec_from_file_location(self, name: str, location: Any = None, **options: Any) -> ModuleSpec | None:
        spec = importlib.util.spec_from_file_location(name, location, **options)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = self._importer.source_loader(name, spec.loader.path) or spec.loader
        return spec
