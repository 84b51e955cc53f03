"""Which servers are being served: name -> definition, beside the folders that failed to load."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway.catalog.definitions import Discovery, LoadFailure, ServerDefinition
from gateway.exceptions import UnknownServer

NOT_SERVED: Final = "No server of this name is served here."
"""What clients are told of a server that is none."""


class Registry:
    """The servers of this process, in the order in which they were discovered. Changed on the host's loop."""

    def __init__(self, discovery: Discovery) -> None:
        self._definitions = {definition.name: definition for definition in discovery.definitions}
        self._failures = {failure.folder: failure for failure in discovery.failures}
        self.revision = 0
        """Goes up with every change."""

    def get(self, name: str) -> ServerDefinition:
        """The definition called `name`.

        Raises:
            UnknownServer: there is none.
        """
        try:
            return self._definitions[name]
        except KeyError:
            raise UnknownServer(NOT_SERVED) from None

    def put(self, definition: ServerDefinition) -> None:
        """Serve `definition`, in place of an older one of the same name."""
        self._definitions[definition.name] = definition
        self._failures.pop(definition.folder, None)
        self.revision += 1

    def note_failure(self, failure: LoadFailure) -> None:
        """Keep why a folder did not load. If it is being served, its older code still is."""
        self._failures[failure.folder] = failure
        self.revision += 1

    def remove(self, folder: Path) -> None:
        """Forget the server in `folder`."""
        self._definitions = {name: found for name, found in self._definitions.items() if found.folder != folder}
        self._failures.pop(folder, None)
        self.revision += 1

    def knows(self, folder: Path) -> bool:
        """Whether `folder` has been tried."""
        return folder in self._failures or any(definition.folder == folder for definition in self)

    @property
    def names(self) -> list[str]:
        """The names of all servers."""
        return list(self._definitions)

    @property
    def failures(self) -> list[LoadFailure]:
        """The folders whose code, as it is now, cannot be served."""
        return list(self._failures.values())

    def __iter__(self) -> Iterator[ServerDefinition]:
        return iter(list(self._definitions.values()))

    def __len__(self) -> int:
        return len(self._definitions)
