"""Takes up new code while the host runs: finds out which servers have changed, loads them, and moves users over.

Not here: loading itself (`catalog.loading`) and moving an instance (`instances`).

Only changes of Python files count. Servers keep other files beside their code and write them while they work; a reload
would cost their users the state of the server.

A server keeps its old code until the new code has loaded. Calls in flight finish on the old code. Other servers are not
affected.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Final

from watchfiles import Change, DefaultFilter, awatch

from gateway import metrics
from gateway.catalog.definitions import LoadFailure, ServerDefinition
from gateway.catalog.discovery import log_near_miss, log_outcome, server_folders
from gateway.catalog.import_effects import restored_process_state
from gateway.catalog.load_errors import timeout_reason
from gateway.catalog.load_limits import LoadTimeout, give_up_load, place_of_thread
from gateway.catalog.loading import Project
from gateway.catalog.manifests import manifest_file
from gateway.catalog.near_misses import near_misses
from gateway.catalog.registry import Registry
from gateway.conf import conf
from gateway.instances.instances import Instances

logger = logging.getLogger(__name__)

GONE_SECONDS: Final = 0.5
"""How long a `main.py` must be missing before its server is removed."""


class Reloader:
    """Brings the servers of one host up to date. Used on the host's loop.

    `on_switched` is called with the name of a server that runs on new code, `on_removed` with that of a removed one.
    """

    def __init__(
        self,
        registry: Registry,
        instances: Instances,
        *,
        on_switched: Callable[[str], None],
        on_removed: Callable[[str], None],
    ) -> None:
        self._registry = registry
        self._instances = instances
        self._on_switched = on_switched
        self._on_removed = on_removed
        self._lock = asyncio.Lock()
        self._manifests: dict[Path, tuple[int, int] | None] = {}
        """Manifest file -> its state at the last look."""
        self.look_at_manifests()

    async def watch(self) -> None:
        """Reload servers as their files change, until cancelled."""
        server_dirs = [path for path in conf.server_dirs if path.is_dir()]
        logger.info("Watching %s for changes", ", ".join(str(path) for path in server_dirs))
        async with asyncio.TaskGroup() as updates:
            async for changes in awatch(*server_dirs, watch_filter=_CodeFilter()):
                # Not awaited: the next change may be of another server, and this one's lane may be blocked.
                updates.create_task(self._follow([Path(path) for _, path in changes]))

    async def _follow(self, changed_paths: list[Path]) -> None:
        try:
            await self.update(changed_paths=changed_paths)
        except Exception:  # watching must go on after any error
            logger.exception("Could not reload servers after a change of their files")

    async def update(self, *, names: Iterable[str] = (), changed_paths: Iterable[Path] = ()) -> None:
        """Reload the servers called `names` and those whose code has changed, serve new folders, drop removed ones.

        Servers are loaded one at a time, but a load that was given up may still run meanwhile. After each load the
        process is put back as it was before.
        """
        wanted = set(names)
        # These are a few file accesses on the loop, once for each saved file.
        paths = [path.resolve() for path in changed_paths if _is_code(path)]
        manifests = {path.resolve() for path in changed_paths if not _is_code(path)}
        loaded: list[ServerDefinition] = []
        async with self._lock:
            found = {folder: server_dir for server_dir in conf.server_places for folder in server_folders(server_dir)}
            freed = await self._remove_gone(found)
            for folder, server_dir in found.items():
                resolved = folder.resolve()
                is_new = not self._registry.knows(folder) or folder.name in freed
                has_changed = any(path.is_relative_to(resolved) for path in paths)
                has_other_manifest = manifest_file(folder).resolve() in manifests
                if is_new or folder.name in wanted or has_changed or has_other_manifest:
                    # A folder in a process of its own has the manifest that it had when its code changes.
                    is_wanted = folder.name in wanted or has_changed
                    definition = await self._load(folder, server_dir, is_wanted=is_wanted)
                    if definition is not None:
                        loaded.append(definition)
            self._look_for_near_misses()
            metrics.load_failures.set(len(self._registry.failures))
        await asyncio.gather(*(self._switch(definition) for definition in loaded))

    async def _remove_gone(self, found: Container[Path]) -> set[str]:
        """Stop serving folders that are no longer there, and return the names that are free now."""
        # The entries of a file that cannot be read just now stay as they are.
        gone = [
            known
            for known in [*self._registry, *self._registry.failures]
            if known.folder not in found and known.folder.parent not in found
        ]
        if gone:
            # Editors and version control replace a file by removing it first.
            await asyncio.sleep(GONE_SECONDS)
            gone = [known for known in gone if _is_gone(known.folder / "main.py")]
        served = {definition.folder: definition.name for definition in self._registry}
        freed: set[str] = set()
        for folder in dict.fromkeys(known.folder for known in gone):
            self._registry.remove(folder)
            name = served.get(folder)
            if name is None:
                logger.info("%s, which could not be served, is gone", folder)
            else:
                logger.info("Server %s is gone", name)
                freed.add(name)
                self._on_removed(name)
        return freed

    async def _load(self, folder: Path, server_dir: Path, *, is_wanted: bool) -> ServerDefinition | None:
        taken = {definition.name: definition.folder for definition in self._registry}
        outcome = await _load_in_thread(Project(server_dir, is_reload=True), folder, taken)
        log_outcome(outcome)
        if isinstance(outcome, LoadFailure):
            self._registry.note_failure(outcome)
            return None
        if not is_wanted and self._is_unchanged(outcome):
            return None
        self._registry.put(outcome)
        self._instances.expect(outcome)
        return outcome

    def _is_unchanged(self, outcome: ServerDefinition) -> bool:
        """Whether a server is a command or URL whose manifest is what it was: its processes may go on."""
        served = next((known for known in self._registry if known.folder == outcome.folder), None)
        return (
            served is not None
            and served.source is not None
            and outcome.source is not None
            and served.source.manifest == outcome.source.manifest
        )

    def look_at_manifests(self) -> list[Path]:
        """Manifests that have changed since the last look. A few `stat` calls; called regularly."""
        files = {manifest_file(known.folder) for known in [*self._registry, *self._registry.failures]}
        files |= {path for path in conf.server_places if path.suffix == ".json"}
        seen = {path: _state(path) for path in files}
        changed = [path for path, state in seen.items() if path in self._manifests and self._manifests[path] != state]
        self._manifests = seen
        return changed

    def _look_for_near_misses(self) -> None:
        found = [near_miss for server_dir in conf.server_dirs for near_miss in near_misses(server_dir)]
        for near_miss in self._registry.replace_near_misses(found):
            log_near_miss(near_miss)

    async def _switch(self, definition: ServerDefinition) -> None:
        failures = await self._instances.switch(definition)
        if failures:
            logger.warning("%d instances of %s stayed on its old code", failures, definition.name)
        self._on_switched(definition.name)


class _CodeFilter(DefaultFilter):
    """Selects changes that may concern code: of Python files, and of whole folders."""

    def __call__(self, change: Change, path: str) -> bool:
        if not super().__call__(change, path):
            return False
        # A path that was deleted may have been a folder.
        return path.endswith(".py") or change is Change.deleted or (change is Change.added and os.path.isdir(path))


def _is_code(path: Path) -> bool:
    """Whether `path` is, or was, a Python file, or is a folder with Python files."""
    return path.suffix == ".py" or any(path.glob("*.py"))


def _state(path: Path) -> tuple[int, int] | None:
    """Time and size of a file, which change when it is written; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _is_gone(path: Path) -> bool:
    """Whether there is certainly no such file."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


async def _load_in_thread(project: Project, folder: Path, taken: dict[str, Path]) -> LoadFailure | ServerDefinition:
    """Load a folder in a daemon thread, so that the process can exit while it runs.

    A load that takes too long is given up: its thread goes on until what it waits for is over. What it has changed in
    the process until then is put back at once, because other loads may change the same meanwhile.
    """
    limit_seconds = conf.load_timeout_seconds
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[LoadFailure | ServerDefinition] = loop.create_future()

    def settle(found: LoadFailure | ServerDefinition) -> None:
        if not outcome.done():
            outcome.set_result(found)

    leaving = threading.Lock()
    is_over = False

    def load() -> None:
        nonlocal is_over
        with contextlib.suppress(LoadTimeout):  # it was given up just now
            found = project.load(folder, taken)
            with leaving:
                is_over = True
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(settle, found)

    thread = threading.Thread(target=load, name=f"load-{folder.name}", daemon=True)
    with restored_process_state(folder.name):
        thread.start()
        try:
            async with asyncio.timeout(limit_seconds or None):
                return await outcome
        except TimeoutError:
            place = place_of_thread(thread.ident, folder)
            with leaving:
                if not is_over:
                    give_up_load(thread)
            return LoadFailure(folder.name, folder, timeout_reason(limit_seconds, place))
