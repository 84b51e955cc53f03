"""Keeps the modules of servers apart: two servers may both have a `helpers.py`, and two projects a package `src`.

`sys.modules` has one place for each name. So a server's modules stand there in a package that belongs to this server
alone: `helpers` is `gumcp_server_weather_1a2b3c4d.helpers`. The modules get an `__import__` of their own, through
`__builtins__` in their globals, which knows what their names mean. A function keeps the builtins of its module: an
import inside a function finds the same modules, in any thread and after a reload. Nothing is patched, so what others
import does not change.

A name is looked up in this order:

1. what is built into Python, and `mcp`, which also has version 1's names (`compat.imports`);
2. the server's folder, and the folders that the server put at the beginning of `sys.path`;
3. what is installed for the host;
4. the folders that the server put at the end of `sys.path`;
5. the root of its project, which is two levels above the server directory: servers of guMCP's structure stand in
   `{root}/src/servers` and import `src.auth…`.

Modules in the folders of the project belong to the project: its servers share them. All others belong to the server.
Folders with installed packages (`site-packages`) are the exception, see `LibraryFinder`.

Not covered: a library that gets the name of a server's module as text and imports it.
"""

import builtins
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Final

import gateway
from gateway.catalog.environment import ServerEnvironment
from gateway.catalog.importlib_view import ImportlibView
from gateway.catalog.server_finder import (
    PROJECT_PREFIX,
    SERVER_PREFIX,
    LibraryFinder,
    ServerModuleFinder,
    ServerSourceLoader,
    package_module,
)
from gateway.compat.imports import import_sdk

_HOST_FOLDER: Final = Path(gateway.__file__).resolve().parents[1]
"""The folder of the host's own packages, which have common names."""

_SITE_FOLDERS: Final = frozenset({"site-packages", "dist-packages"})
"""Names of the folders that packages are installed into."""


class ServerModules:
    """What the modules of one server can import; or those of one project, which its servers share.

    It is the `__import__` of these modules. Used in any thread.
    """

    def __init__(self, home: Path, package: str, project: "ServerModules | None" = None) -> None:
        self.uses_bytecode = True
        """Whether compiled files are read. False for reloads: Python may take an old one for current."""
        self._home = home
        """The server's folder, or the root of the project."""
        self._resolved_home = home.resolve()
        self._package = package
        """The package in `sys.modules` for the modules in that folder."""
        self._packages = {package}
        """The packages for all folders whose modules belong to this server or project."""
        self._project = project
        self._server_homes: set[Path] = set()
        """The folders of a project's servers. What is in them never belongs to the project."""
        # What is there before the first server of the project is loaded is the host's.
        self._host_path: list[str] = list(sys.path) if project is None else project._host_path
        self._first: dict[str, None] = {}
        self._last: dict[str, None] = {}
        """Folders that were put on `sys.path` before and after the host's entries, in their order."""
        self._libraries: dict[str, bool] = {}
        """Folders and whether packages have been installed into them."""
        self._owners: dict[str, str | None] = {}
        """The package of each top-level module that was imported; None for what is installed."""
        self._importlib = ImportlibView(self)
        self.environment = None if project is None else ServerEnvironment(home.name)
        """The server's environment variables; None for a project, whose modules see those of the process."""
        self._os = None if self.environment is None else self.environment.os_module()
        self.builtins = {**vars(builtins), "__import__": self}
        ServerModuleFinder.install()
        sys.modules[package] = package_module(package, home, self)

    @classmethod
    def of_project(cls, server_dir: Path) -> "ServerModules":
        """Return the modules that the servers in `server_dir` share. They are loaded once for the whole process."""
        root = server_dir.resolve().parent.parent
        package = f"{PROJECT_PREFIX}{_digest(root)}"
        module = sys.modules.get(package)
        if module is None:
            return cls(root, package)
        known = module.__dict__["__builtins__"]["__import__"]
        assert isinstance(known, cls)
        return known

    def of_server(self, folder: Path, *, uses_bytecode: bool = True) -> "ServerModules":
        """Return modules for one load of the server in `folder`. Old code keeps the modules of its own load."""
        slug = re.sub(r"[^a-z0-9]", "_", folder.name.lower())
        base = f"{SERVER_PREFIX}{slug}_{_digest(folder)}"
        # The first load always has the same name, so that objects which were pickled by another process can be read.
        package, number = base, 1
        while package in sys.modules:
            number += 1
            package = f"{base}_{number}"
        modules = ServerModules(folder, package, self)
        modules.uses_bytecode = uses_bytecode
        self._server_homes.add(modules._resolved_home)
        return modules

    # -- importing

    def __call__(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Import a module (`__import__`)."""
        fromlist = fromlist or ()
        if level:
            # Relative to a module whose full name is the server's already.
            return builtins.__import__(name, globals, locals, fromlist, level)
        top, _, rest = name.partition(".")
        if top == "mcp":
            return import_sdk(name, fromlist)
        if top == "importlib":
            return self._importlib.load(name, fromlist)
        if top == "os" and self._os is not None and not (rest and fromlist):
            return self._os
        package = self._package_of(top)
        if package is None:
            if sys.path == self._host_path or _is_loaded(name, fromlist):
                return builtins.__import__(name, globals, locals, fromlist)
            with self._host_path_only():
                return builtins.__import__(name, globals, locals, fromlist)
        try:
            leaf = builtins.__import__(f"{package}.{name}", globals, locals, fromlist or ("__name__",))
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith(f"{package}."):
                raise
            plain_name = error.name.removeprefix(f"{package}.")
            raise ModuleNotFoundError(str(error).replace(error.name, plain_name), name=plain_name) from None
        return leaf if fromlist or not rest else sys.modules[f"{package}.{top}"]

    def import_module(self, name: str) -> ModuleType:
        """Import the module that the server calls `name`."""
        return self(name, fromlist=("__name__",))

    def qualified(self, name: str) -> str:
        """Return the name in `sys.modules` of the module that the server calls `name`."""
        package = None if name.startswith(".") else self._package_of(name.partition(".")[0])
        return name if package is None else f"{package}.{name}"

    def source_loader(self, name: str, path: str) -> ServerSourceLoader | None:
        """Return a loader for a file of the server or its project; None for other files."""
        owners = [self] if self._project is None else [self, self._project]
        is_own = any(Path(path).resolve().is_relative_to(owner._resolved_home) for owner in owners)
        return ServerSourceLoader(name, path, self) if is_own else None

    # -- what a name means

    def _package_of(self, top: str) -> str | None:
        """Return the package of the top-level module `top`; None if it is an installed one."""
        try:
            return self._owners[top]
        except KeyError:
            owner = self._find(top)
            # What was not found may be there the next time.
            if owner is not None or top in sys.modules:
                self._owners[top] = owner
            return owner

    def _find(self, top: str) -> str | None:
        """Look `top` up in the order that the module's docstring gives."""
        if BuiltinImporter.find_spec(top) or FrozenImporter.find_spec(top):
            return None
        self.note_search_path()
        first = [str(self._home), *self._first] if self._project is not None else list(self._first)
        last = [*self._last, *self._roots()]
        if found := _first_with_module(top, first):
            return self._package_for(found)
        if top in sys.modules:
            return None
        with self._host_path_only():
            installed = importlib.util.find_spec(top)
        if installed is not None and _is_library(installed):
            return None
        if installed is not None and _is_module(installed):
            return self._package_for(found) if (found := self._root_with(installed)) else None
        # A folder without `__init__.py` counts only where there is nothing else of the name, as in Python.
        found = _first_with_module(top, last) or _first_with_folder(top, [*first, *last])
        if found is None and installed is not None:
            found = self._root_with(installed)
        return self._package_for(found) if found else None

    def _roots(self) -> list[str]:
        """The project's root, unless it contains the host: whatever is there is not the project's."""
        root = self._home if self._project is None else self._project._home
        return [] if root in (_HOST_FOLDER, *_HOST_FOLDER.parents) else [str(root)]

    def _root_with(self, installed: ModuleSpec) -> str | None:
        """Return the project's root if an installed module is in it: the root may be on the host's `sys.path`."""
        root = str(self._home if self._project is None else self._project._home)
        spec = PathFinder.find_spec(installed.name, [root])
        return root if spec is not None and spec.origin == installed.origin else None

    def portions(self, name: str) -> list[str]:
        """Return the folders that make up a namespace package (folders of one name without `__init__.py`)."""
        directories = dict.fromkeys([str(self._home), *self._first, *self._last, *self._roots()])
        return [str(path) for directory in directories if (path := Path(directory) / name).is_dir()]

    def _package_for(self, directory: str) -> str:
        """Return the package in `sys.modules` for the modules in `directory`."""
        path = Path(directory)
        if path in (self._home, self._resolved_home):
            return self._package
        if self._project is not None and self._project._owns(path) and not path.is_relative_to(self._resolved_home):
            return self._project._package_for(directory)
        name = f"{self._package}_in_{_digest(path)}"
        self._packages.add(name)
        if name not in sys.modules:
            sys.modules.setdefault(name, package_module(name, path, self))
        return name

    def _owns(self, directory: Path) -> bool:
        # Every folder is below the root of the project if that is `/`.
        return directory.is_relative_to(self._home) and self._home not in _HOST_FOLDER.parents

    # -- sys.path

    def note_search_path(self) -> None:
        """Keep what servers have put on `sys.path`. It is removed after a load, but functions may import later."""
        if sys.path == self._host_path:
            return
        is_first = True
        for entry in list(sys.path):
            if entry in self._host_path:
                is_first = False
            elif isinstance(entry, str):
                self._note(str(Path(entry).resolve()), is_first=is_first)

    def _note(self, directory: str, *, is_first: bool) -> None:
        path = Path(directory)
        if self._has_libraries(directory):
            LibraryFinder.installed().add(directory)
        elif path != self._resolved_home and not any(path.is_relative_to(home) for home in self._server_homes):
            if directory not in self._first and directory not in self._last:
                (self._first if is_first else self._last)[directory] = None
            if self._project is not None:
                self._project._note(directory, is_first=is_first)

    @contextmanager
    def _host_path_only(self) -> Iterator[None]:
        """Hide what servers have put on `sys.path`. A library would find their `calendar.py` there, for everybody."""
        if sys.path == self._host_path:
            yield
            return
        before = list(sys.path)
        sys.path[:] = [entry for entry in before if entry in self._host_path or self._has_libraries(str(entry))]
        try:
            yield
        finally:
            sys.path[:] = [*before, *(entry for entry in sys.path if entry not in before)]

    def _has_libraries(self, directory: str) -> bool:
        """Whether packages have been installed into `directory`, as by `pip install --target`."""
        known = self._libraries.get(directory)
        if known is None:
            path = Path(directory)
            is_site = not _SITE_FOLDERS.isdisjoint(path.parts)
            known = self._libraries[directory] = is_site or any(path.glob("*.dist-info"))
        return known

    # -- loading

    def execute(self, path: Path) -> ModuleType:
        """Execute a file of the server as a module and return it. Raises what its code raises."""
        name = f"{self._package}.{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path, loader=ServerSourceLoader(name, str(path), self))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        setattr(sys.modules[self._package], path.stem, module)
        spec.loader.exec_module(module)
        return module

    def other_environments(self) -> list[ServerEnvironment]:
        """Return the environments of all other servers, and of earlier loads of this one."""
        importers = [
            module.__dict__["__builtins__"]["__import__"]
            for name, module in list(sys.modules.items())
            if name.startswith(SERVER_PREFIX) and "." not in name
        ]
        environments = [importer.environment for importer in importers if isinstance(importer, ServerModules)]
        return [found for found in environments if found is not None and found is not self.environment]

    def forget(self) -> None:
        """Take the modules out of `sys.modules`. Code that still runs keeps its own references."""
        for name in list(sys.modules):
            if name.partition(".")[0] in self._packages:
                sys.modules.pop(name, None)

    @contextmanager
    def loading_anew(self, folder: Path) -> Iterator[None]:
        """Have the project's modules in a server's folder (`src.servers.time.words`) loaded anew, from their sources.

        They are put back if the block raises.
        """
        importlib.invalidate_caches()
        self.uses_bytecode = False
        taken = {
            name: module
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] in self._packages
            and Path(getattr(module, "__file__", None) or "/").is_relative_to(folder.resolve())
        }
        for name in taken:
            parent, _, child = name.rpartition(".")
            # Otherwise `from parent import child` finds the old module.
            vars(sys.modules[parent]).pop(child, None)
        for name in taken:
            del sys.modules[name]
        try:
            yield
        except BaseException:
            sys.modules.update(taken)
            for name, module in taken.items():
                parent, _, child = name.rpartition(".")
                setattr(sys.modules[parent], child, module)
            raise


def _is_loaded(name: str, fromlist: Sequence[str]) -> bool:
    """Whether an import statement has nothing to load."""
    module = sys.modules.get(name)
    return module is not None and all(hasattr(module, attribute) for attribute in fromlist)


def _first_with_module(name: str, directories: Sequence[str]) -> str | None:
    for directory in directories:
        spec = PathFinder.find_spec(name, [directory])
        if spec is not None and _is_module(spec):
            return directory
    return None


def _first_with_folder(name: str, directories: Sequence[str]) -> str | None:
    return next((directory for directory in directories if PathFinder.find_spec(name, [directory]) is not None), None)


def _is_module(spec: ModuleSpec) -> bool:
    """Whether there is a file to execute: a namespace package has none."""
    return spec.origin is not None


def _is_library(spec: ModuleSpec) -> bool:
    """Whether a module or namespace package was installed."""
    places = [spec.origin or "", *(spec.submodule_search_locations or [])]
    return any(not _SITE_FOLDERS.isdisjoint(Path(place).parts) for place in places)


def _digest(path: Path) -> str:
    return sha256(str(path).encode()).hexdigest()[:8]


def plain_names(text: str) -> str:
    """Return `text` with the names of servers' modules as their authors know them."""
    packages = f"(?:{SERVER_PREFIX}|{PROJECT_PREFIX})\\w+"
    return re.sub(packages, ".", re.sub(rf"{packages}\.", "", text))
