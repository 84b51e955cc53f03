"""Loads one server folder: executes its `main.py`, and says why where that fails.

Not here: which folders there are (`discovery`), what is undone after a load (`import_effects`), and what the factories
make (`factories`).
"""

import contextvars
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from gateway.catalog.definitions import LoadFailure, ServerDefinition
from gateway.catalog.import_effects import restored_functions
from gateway.catalog.load_errors import place_of, reason, timeout_reason, traceback_text
from gateway.catalog.load_limits import LoadTimeout, limited_load
from gateway.catalog.loading_thread import own_event_loop
from gateway.catalog.manifests import load_manifest, read_call_timeout
from gateway.catalog.names import RESERVED_NAMES, SERVER_NAME
from gateway.catalog.server_modules import ServerModules
from gateway.catalog.styles import Style, UnusableServer, describe
from gateway.upstreams.slots import slots_of_this_process


class Project:
    """A server directory, and the modules that its servers share.

    Modules see version 1's names of the MCP SDK beside version 2's (`gateway.compat`).
    """

    def __init__(self, server_dir: Path, *, is_reload: bool = False, load_timeout_seconds: float = 0) -> None:
        """`load_timeout_seconds` applies in the main thread (`limited_load`)."""
        self._server_dir = server_dir
        self._is_reload = is_reload
        self._load_timeout_seconds = load_timeout_seconds
        self._slots = slots_of_this_process()

    @cached_property
    def _modules(self) -> ServerModules:
        # Only where there is code to load: what is beside an `mcpServers` file is not importable.
        return ServerModules.of_project(self._server_dir)

    def load(self, folder: Path, taken: dict[str, Path]) -> ServerDefinition | LoadFailure:
        """Load one server folder, whatever its code raises. `taken` has the names that other folders have.

        The caller undoes what it changes in the process (`restored_process_state`).
        """
        try:
            return self._load(folder, taken)
        except BaseException:  # an exception is foreign code as well: its text and its class may raise
            where = "".join(traceback.format_tb(sys.exc_info()[2]))
            text = "Loading main.py failed with an exception that cannot be described."
            return LoadFailure(folder.name, folder, text, where)

    def _load(self, folder: Path, taken: dict[str, Path]) -> ServerDefinition | LoadFailure:
        name = folder.name
        if name in RESERVED_NAMES:
            text = f"The name {name} is reserved for the host's own pages. Rename the folder."
            return LoadFailure(name, folder, text)
        if not SERVER_NAME.fullmatch(name):
            return LoadFailure(name, folder, "The folder's name may have letters, digits, and . _ - after the first.")
        if taken.get(name, folder) != folder:
            return LoadFailure(name, folder, f"The name {name} is taken by {taken[name]}. Rename one of the two.")

        served_elsewhere = load_manifest(folder, self._slots)
        if served_elsewhere is not None:
            return served_elsewhere
        outcome = self.load_code(folder)
        if isinstance(outcome, ServerDefinition):
            return replace(outcome, call_timeout_seconds=read_call_timeout(folder))
        return outcome

    def load_code(self, folder: Path) -> ServerDefinition | LoadFailure:
        """Load the code of a folder into this process, whatever its manifest says."""
        name = folder.name
        started = time.perf_counter()
        try:
            with own_event_loop(), limited_load(folder, self._load_timeout_seconds), restored_functions(folder.name):
                style = contextvars.copy_context().run(self._execute, folder)
        except UnusableServer as error:
            return LoadFailure(name, folder, str(error))
        except LoadTimeout as error:
            text = timeout_reason(self._load_timeout_seconds, place_of(error, folder))
            return LoadFailure(name, folder, text, traceback_text(error))
        # Foreign code. Nothing that it raises may cost more than this server, SystemExit and the like included.
        except BaseException as error:
            return LoadFailure(name, folder, reason(error, folder), traceback_text(error))
        return ServerDefinition(name, folder, style, time.perf_counter() - started)

    def _execute(self, folder: Path) -> Style:
        """Execute the folder's `main.py` and find out how it makes its servers.

        Raises:
            UnusableServer: as `describe`.
            BaseException: what the module's own code raised.
        """
        modules = self._modules.of_server(folder, uses_bytecode=not self._is_reload)
        assert modules.environment is not None
        try:
            with (
                self._modules.loading_anew(folder) if self._is_reload else nullcontext(),
                modules.environment.loading(modules.other_environments()),
            ):
                style = describe(modules.execute(folder / "main.py"))
        except BaseException:
            modules.forget()
            raise
        modules.note_search_path()
        return style
