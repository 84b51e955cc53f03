"""Finds and loads the modules of servers for Python's import system, on `sys.meta_path`.

Not here: which name means which module for a server (`server_modules`).
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final, Protocol

SERVER_PREFIX: Final = "gumcp_server_"
PROJECT_PREFIX: Final = "gumcp_project_"
"""Beginnings of the names of packages in `sys.modules` that hold the modules of a server, or of a project."""


class Importer(Protocol):
    """The `__import__` of a server's modules, as the finder needs it."""

    builtins: dict[str, Any]
    uses_bytecode: bool

    def portions(self, name: str) -> list[str]:
        """The folders that make up a namespace package (a folder without `__init__.py`)."""


def package_module(name: str, directory: Path, importer: Importer) -> ModuleType:
    """Make a package for the modules in `directory`. They import with `importer`."""
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(directory)]
    module = ModuleType(name)
    module.__spec__ = spec
    module.__path__ = spec.submodule_search_locations
    module.__dict__["__builtins__"] = importer.builtins
    return module


class ServerModuleFinder(MetaPathFinder):
    """Finds the modules in the packages that `package_module` has made."""

    @classmethod
    def install(cls) -> None:
        """Put the finder in front of Python's own, which would load these modules with ordinary builtins."""
        if not any(isinstance(finder, cls) for finder in sys.meta_path):
            sys.meta_path.insert(0, cls())

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find one module (`importlib.abc.MetaPathFinder`)."""
        package, _, rest = name.partition(".")
        if not rest or not package.startswith((SERVER_PREFIX, PROJECT_PREFIX)):
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            return None
        importer: Importer = sys.modules[package].__dict__["__builtins__"]["__import__"]
        if spec.loader is None and "." not in rest:
            spec.submodule_search_locations = importer.portions(rest)
        elif isinstance(spec.loader, SourceFileLoader):
            # Also in place of the loaders of others' import hooks, such as beartype's.
            spec.loader = ServerSourceLoader(name, spec.loader.path, importer)
        return spec


class ServerSourceLoader(SourceFileLoader):
    """Executes a source file whose imports are made by a server's `__import__`."""

    def __init__(self, name: str, path: str, importer: Importer) -> None:
        super().__init__(name, path)
        self._importer = importer

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make an empty module that has the server's builtins."""
        module = ModuleType(spec.name)
        module.__dict__["__builtins__"] = self._importer.builtins
        return module

    def get_code(self, fullname: str) -> CodeType | None:
        """Compile the file, or read its bytecode."""
        if self._importer.uses_bytecode:
            return super().get_code(fullname)
        # Python takes bytecode for fresh if the file has the same size and was changed in the same second.
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class LibraryFinder(MetaPathFinder):
    """Finds installed packages in folders that servers have put on `sys.path` while they were loaded.

    It comes after all other finders, so these folders can hide nothing of the host's. Such packages are shared by the
    whole process: libraries with C code work under their own names only.
    """

    def __init__(self) -> None:
        self._directories: list[str] = []

    @classmethod
    def installed(cls) -> "LibraryFinder":
        """Return the finder of this process."""
        for finder in sys.meta_path:
            if isinstance(finder, cls):
                return finder
        finder = cls()
        sys.meta_path.append(finder)
        return finder

    def add(self, directory: str) -> None:
        """Search in `directory` from now on."""
        if directory not in self._directories:
            self._directories.append(directory)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a top-level module (`importlib.abc.MetaPathFinder`)."""
        return PathFinder.find_spec(name, self._directories) if path is None else None
