"""Loads one server folder: executes its `main.py`, and says why where that fails.

Not here: which folders there are (`discovery`), what is undone after a load (`import_effects`), and what the factories
make (`factories`).
"""

import importlib
import importlib.util
import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from hashlib import sha256
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Final

from gateway.catalog.definitions import LoadFailure, ServerDefinition
from gateway.catalog.import_effects import current_event_loop
from gateway.catalog.load_limits import LoadTimeout, limited_load
from gateway.catalog.names import RESERVED_NAMES, SERVER_NAME
from gateway.catalog.styles import Style, UnusableServer, describe
from gateway.compat.imports import FreshSourceLoader, compat_builtins

_PACKAGE_PREFIX: Final = "gumcp_server_"

_MAIN_THREAD_ONLY: Final = (
    "This code loads only in the main thread, where no reload is done: restart the host, "
    "or move what needs that thread out of the import."
)

_load_numbers = itertools.count(1)


class Project:
    """A server directory and what its modules may import: the packages of the project that it belongs to.

    Modules see version 1's names of the MCP SDK beside version 2's (`gateway.compat`).
    """

    def __init__(self, server_dir: Path, *, uses_bytecode: bool = True, load_timeout_seconds: float = 0) -> None:
        """`uses_bytecode` is for the first load: Python takes a file of the same size and second for unchanged.

        `load_timeout_seconds` applies in the main thread (`limited_load`).
        """
        # Servers of guMCP's structure stand in {root}/src/servers and import from {root} (`from src.auth…`), also in
        # functions that run long after they were loaded.
        self._root = server_dir.resolve().parent.parent
        self._uses_bytecode = uses_bytecode
        self._load_timeout_seconds = load_timeout_seconds
        self._builtins = compat_builtins([self._root, server_dir], uses_bytecode=uses_bytecode)
        ProjectFinder.add(self._root)

    def load(self, folder: Path, taken: dict[str, Path]) -> ServerDefinition | LoadFailure:
        """Load one server folder, whatever its code raises. `taken` has the names that other folders have.

        The caller undoes what it changes in the process (`restored_process_state`).
        """
        try:
            return self._load(folder, taken)
        except BaseException:  # an exception is foreign code as well: its text and its class may raise
            where = "".join(traceback.format_tb(sys.exc_info()[2]))
            reason = "Loading main.py failed with an exception that cannot be described."
            return LoadFailure(folder.name, folder, reason, where)

    def _load(self, folder: Path, taken: dict[str, Path]) -> ServerDefinition | LoadFailure:
        name = folder.name
        if name in RESERVED_NAMES:
            reason = f"The name {name} is reserved for the host's own pages. Rename the folder."
            return LoadFailure(name, folder, reason)
        if not SERVER_NAME.fullmatch(name):
            return LoadFailure(name, folder, "The folder's name may have letters, digits, and . _ - after the first.")
        if taken.get(name, folder) != folder:
            return LoadFailure(name, folder, f"The name {name} is taken by {taken[name]}. Rename one of the folders.")

        started = time.perf_counter()
        try:
            with current_event_loop(), limited_load(folder, self._load_timeout_seconds):
                before = set(sys.path)
                try:
                    style = self._execute(folder)
                finally:
                    # Its functions may import from there long after it was loaded.
                    for entry in sys.path:
                        if entry not in before:
                            ProjectFinder.add(Path(entry).absolute())
        except UnusableServer as error:
            return LoadFailure(name, folder, str(error))
        except LoadTimeout as error:
            return LoadFailure(name, folder, str(error), "".join(traceback.format_exception(error)))
        # Foreign code: SystemExit and the like included, it may cost this server and no other.
        except BaseException as error:
            reason = f"main.py raised {type(error).__name__} when it was loaded: {_text(error)}".rstrip(": ")
            if "main thread" in reason and threading.current_thread() is not threading.main_thread():
                reason = f"{_MAIN_THREAD_ONLY} {reason}"
            return LoadFailure(name, folder, reason, "".join(traceback.format_exception(error)))
        return ServerDefinition(name, folder, style, time.perf_counter() - started)

    def _execute(self, folder: Path) -> Style:
        """Execute the folder's `main.py` and find out how it makes its servers.

        It is a package of a unique name, so that `from . import …` finds its siblings. Each load has a name of its own:
        after a reload, what still runs of the old code keeps its modules.

        Raises:
            UnusableServer: as `describe`.
            BaseException: what the module's own code raised.
        """
        digest = sha256(str(folder).encode()).hexdigest()[:12]
        unique_name = f"{_PACKAGE_PREFIX}{digest}_{next(_load_numbers)}"
        path = str(folder / "main.py")
        spec = importlib.util.spec_from_file_location(
            unique_name,
            path,
            loader=None if self._uses_bytecode else FreshSourceLoader(unique_name, path),
            submodule_search_locations=[str(folder)],
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        module.__dict__["__builtins__"] = self._builtins
        siblings = {} if self._uses_bytecode else _take_siblings(folder)
        sys.modules[unique_name] = module
        try:
            spec.loader.exec_module(module)
            return describe(module)
        except BaseException:
            forget_modules(unique_name)
            sys.modules.update(siblings)
            raise


def _take_siblings(folder: Path) -> dict[str, ModuleType]:
    """Take the modules out of `sys.modules` that were imported from `folder` by their bare names, to load them anew."""
    importlib.invalidate_caches()
    prefix = str(folder) + os.sep
    found = {
        name: module
        for name, module in list(sys.modules.items())
        if not name.startswith(_PACKAGE_PREFIX) and (getattr(module, "__file__", None) or "").startswith(prefix)
    }
    for name in found:
        del sys.modules[name]
    return found


def _text(error: BaseException) -> str:
    """The text of an exception of foreign code, or nothing where asking for it raises."""
    try:
        return str(error)
    except Exception:
        return ""


def forget_modules(package: str) -> None:
    """Take a server's module and its siblings out of `sys.modules`. Code that still runs keeps its own references."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


class ProjectFinder:
    """Finds top-level modules in the roots of server projects and where servers look for theirs, after all others.

    On `sys.meta_path` instead of `sys.path`: a project's folders can shadow nothing of the host's.
    """

    _roots: ClassVar[list[str]] = []

    @classmethod
    def add(cls, root: Path) -> None:
        """Make the modules in `root` importable. Not where the host itself is, whose folders have common names."""
        if str(root) not in cls._roots and root not in Path(__file__).resolve().parents:
            cls._roots.append(str(root))
        if cls not in sys.meta_path:
            sys.meta_path.append(cls)

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Look for a top-level module (`importlib.abc.MetaPathFinder`)."""
        return PathFinder.find_spec(name, cls._roots) if path is None else None
