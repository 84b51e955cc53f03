"""Loads one server folder: executes its `main.py`, and says why where that fails.

Not here: which folders there are (`discovery`), what is undone after a load (`import_effects`), and what the factories
make (`factories`).
"""

import sys
import threading
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from gateway.catalog.definitions import LoadFailure, ServerDefinition
from gateway.catalog.import_effects import current_event_loop
from gateway.catalog.load_limits import LoadTimeout, limited_load
from gateway.catalog.manifests import has_manifest, load_manifest
from gateway.catalog.names import RESERVED_NAMES, SERVER_NAME
from gateway.catalog.server_modules import ServerModules, plain_names
from gateway.catalog.styles import Style, UnusableServer, describe
from gateway.conf import conf
from gateway.upstreams.slots import Slots

_MAIN_THREAD_ONLY: Final = (
    "This code loads only in the main thread, where no reload is done: restart the host, "
    "or move what needs that thread out of the import."
)


class Project:
    """A server directory, and the modules that its servers share.

    Modules see version 1's names of the MCP SDK beside version 2's (`gateway.compat`).
    """

    def __init__(self, server_dir: Path, *, is_reload: bool = False, load_timeout_seconds: float = 0) -> None:
        """`load_timeout_seconds` applies in the main thread (`limited_load`)."""
        self._modules = ServerModules.of_project(server_dir)
        self._is_reload = is_reload
        self._load_timeout_seconds = load_timeout_seconds
        self._slots = Slots()

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

        served_elsewhere = load_manifest(folder, self._slots) if has_manifest(folder) or conf.isolates_folders else None
        return served_elsewhere or self.load_code(folder)

    def load_code(self, folder: Path) -> ServerDefinition | LoadFailure:
        """Load the code of a folder into this process, whatever its manifest says."""
        name = folder.name
        started = time.perf_counter()
        try:
            with current_event_loop(), limited_load(folder, self._load_timeout_seconds):
                style = self._execute(folder)
        except UnusableServer as error:
            return LoadFailure(name, folder, str(error))
        except LoadTimeout as error:
            return LoadFailure(name, folder, str(error), "".join(traceback.format_exception(error)))
        # Foreign code: SystemExit and the like included, it may cost this server and no other.
        except BaseException as error:
            reason = f"main.py raised {type(error).__name__} when it was loaded: {plain_names(_text(error))}".rstrip(
                ": "
            )
            if "main thread" in reason and threading.current_thread() is not threading.main_thread():
                reason = f"{_MAIN_THREAD_ONLY} {reason}"
            return LoadFailure(name, folder, reason, "".join(traceback.format_exception(error)))
        return ServerDefinition(name, folder, style, time.perf_counter() - started)

    def _execute(self, folder: Path) -> Style:
        """Execute the folder's `main.py` and find out how it makes its servers.

        Raises:
            UnusableServer: as `describe`.
            BaseException: what the module's own code raised.
        """
        modules = self._modules.of_server(folder, uses_bytecode=not self._is_reload)
        try:
            with self._modules.loading_anew(folder) if self._is_reload else nullcontext():
                style = describe(modules.execute(folder / "main.py"))
        except BaseException:
            modules.forget()
            raise
        modules.note_search_path()
        return style


def _text(error: BaseException) -> str:
    """The text of an exception of foreign code, or nothing where asking for it raises."""
    try:
        return str(error)
    except Exception:
        return ""
