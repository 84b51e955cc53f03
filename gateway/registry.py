"""Which servers are being served: name -> definition, beside the folders that failed to load."""

from collections.abc import Iterator

from gateway.discovery import Discovery, LoadFailure, ServerDefinition
from gateway.exceptions import UnknownServer


class Registry:
    """The servers of this process, in the order in which they were discovered."""

    def __init__(self, discovery: Discovery) -> None:
        self._definitions = {definition.name: definition for definition in discovery.definitions}
        self.failures: list[LoadFailure] = list(discovery.failures)

    def get(self, name: str) -> ServerDefinition:
        """The definition called `name`.

        Raises:
            UnknownServer: there is none.
        """
        try:
            return self._definitions[name]
        except KeyError:
            raise UnknownServer("No server of this name is served here.") from None

    @property
    def names(self) -> list[str]:
        """The names of all servers."""
        return list(self._definitions)

    def __iter__(self) -> Iterator[ServerDefinition]:
        return iter(list(self._definitions.values()))

    def __len__(self) -> int:
        return len(self._definitions)
