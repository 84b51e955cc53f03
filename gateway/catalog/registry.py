"""The servers that are being served, by name, and the folders that cannot be served."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway.catalog.definitions import Discovery, LoadFailure, NearMiss, ServerDefinition
from gateway.exceptions import UnknownServer

NOT_SERVED: Final = "No server of this name is served here."
"""What clients are told when they ask for an unknown server."""


class Registry:
    """The servers of this process, in the order in which they were discovered.

    Changed on the host's loop. May be read in any thread.
    """

    def __init__(self, discovery: Discovery) -> None:
        self._definitions = {definition.name: definition for definition in discovery.definitions}
        self._failures = {failure.folder: failure for failure in discovery.failures}
        self._near_misses = list(discovery.near_misses)
        self.revision = 0
        """Increases with every change."""

    def get(self, name: str) -> ServerDefinition:
        """Return the definition called `name`.

        Raises:
            UnknownServer: no server of this name is served.
        """
        try:
            return self._definitions[name]
        except KeyError:
            raise UnknownServer(NOT_SERVED) from None

    def serves(self, name: str) -> bool:
        """Whether a server of this name is being served."""
        return name in self._definitions

    def own_call_timeout(self, name: str) -> float | None:
        """The time limit for calls that the manifest of server `name` sets, if it sets one."""
        definition = self._definitions.get(name)
        return None if definition is None else definition.call_timeout_seconds

    def warnings(self) -> dict[str, str]:
        """Server -> why it cannot be used although it was loaded, as far as is known before its first use."""
        sources = {definition.name: definition.source for definition in self}
        found = {name: source.warning() for name, source in sources.items() if source is not None}
        return {name: warning for name, warning in found.items() if warning}

    def put(self, definition: ServerDefinition) -> None:
        """Serve `definition`. It replaces an older one of the same name."""
        self._definitions = {**self._definitions, definition.name: definition}
        self._failures = {folder: failure for folder, failure in self._failures.items() if folder != definition.folder}
        self.revision += 1

    def note_failure(self, failure: LoadFailure) -> None:
        """Keep why a folder did not load. If the server is being served, its older code still is."""
        self._failures = {**self._failures, failure.folder: failure}
        self.revision += 1

    def remove(self, folder: Path) -> None:
        """Forget the server in `folder`."""
        self._definitions = {name: found for name, found in self._definitions.items() if found.folder != folder}
        self._failures = {path: failure for path, failure in self._failures.items() if path != folder}
        self.revision += 1

    def replace_near_misses(self, near_misses: list[NearMiss]) -> list[NearMiss]:
        """Keep what is not found as a server at the moment, and return what is new of it."""
        new = [near_miss for near_miss in near_misses if near_miss not in self._near_misses]
        if near_misses != self._near_misses:
            self._near_misses = list(near_misses)
            self.revision += 1
        return new

    def knows(self, folder: Path) -> bool:
        """Whether somebody has tried to load `folder`."""
        return folder in self._failures or any(definition.folder == folder for definition in self)

    @property
    def names(self) -> list[str]:
        """The names of all servers that are being served."""
        return list(self._definitions)

    @property
    def failures(self) -> list[LoadFailure]:
        """The folders whose code, as it is now, cannot be served."""
        return list(self._failures.values())

    @property
    def near_misses(self) -> list[NearMiss]:
        """What is probably meant to be a server, but is not found as one."""
        return list(self._near_misses)

    def __iter__(self) -> Iterator[ServerDefinition]:
        return iter(list(self._definitions.values()))

    def __len__(self) -> int:
        return len(self._definitions)
