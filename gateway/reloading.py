"""New code for servers while the host runs: loading a changed folder, and moving everything over to it.

Lives here: which folders changed and what happens then. Not here: loading itself (`discovery`), moving an instance
(`instances`).

A server keeps its old code until the new has loaded; what is being handled finishes on the old; other servers do not
notice.
"""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from watchfiles import awatch

from gateway.conf import conf
from gateway.discovery import LoadFailure, Project, server_folders

if TYPE_CHECKING:
    from gateway.host import Host

logger = logging.getLogger(__name__)

REMOVED: Final = "the server was removed"
"""Why sessions ended whose server's folder is gone."""


class Reloader:
    """Brings the servers of one host up to date. Used on the host's loop."""

    def __init__(self, host: "Host") -> None:
        self._host = host
        self._lock = asyncio.Lock()

    async def watch(self) -> None:
        """Reload servers as their files change, until cancelled."""
        server_dirs = [path for path in conf.server_dirs if path.is_dir()]
        logger.info("Watching %s for changes", ", ".join(str(path) for path in server_dirs))
        async for changes in awatch(*server_dirs):
            await self.update(changed_paths=[Path(path) for _, path in changes])

    async def update(self, *, names: Iterable[str] = (), changed_paths: Iterable[Path] = ()) -> None:
        """Reload the servers called `names` and those with changed files; take up new folders, let go of removed ones.

        One update at a time.
        """
        wanted = set(names)
        # A few look-ups, when somebody has saved a file.
        paths = [path.resolve() for path in changed_paths]
        async with self._lock:
            found = {folder: server_dir for server_dir in conf.server_dirs for folder in server_folders(server_dir)}
            for known in [*self._host.registry, *self._host.registry.failures]:
                if known.folder not in found:
                    self._remove(known.name, known.folder)
            for folder, server_dir in found.items():
                resolved = folder.resolve()
                is_new = not self._host.registry.knows(folder)
                if is_new or folder.name in wanted or any(path.is_relative_to(resolved) for path in paths):
                    await self._load(folder, server_dir)

    async def _load(self, folder: Path, server_dir: Path) -> None:
        registry = self._host.registry
        taken = {definition.name: definition.folder for definition in registry}
        outcome = await asyncio.to_thread(Project(server_dir).load, folder, taken)
        if isinstance(outcome, LoadFailure):
            logger.warning("Could not load server %s: %s", outcome.name, outcome.reason)
            registry.note_failure(outcome)
            return
        is_known = outcome.name in registry.names
        registry.put(outcome)
        logger.info("Loaded server: %s", outcome.name)
        if is_known:
            failures = await self._host.instances.switch(outcome)
            if failures:
                logger.warning("%d instances of %s stayed on its old code", failures, outcome.name)
            self._announce(outcome.name)

    def _announce(self, server_name: str) -> None:
        for session in self._host.sessions:
            if session.server_name == server_name:
                session.announce()
        for call in list(self._host.listening.get(server_name, ())):
            call.announce()

    def _remove(self, name: str, folder: Path) -> None:
        logger.info("Server %s is gone", name)
        self._host.registry.remove(folder)
        self._host.end_sessions_of(name, REMOVED)
