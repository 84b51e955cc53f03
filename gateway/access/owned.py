"""What access needs to know of a session: whose it is, where it came from, and how it is ended.

The sessions themselves: `gateway.transports.sessions`, which this package does not import.
"""

from collections.abc import Iterator
from typing import Protocol

from gateway.access.identity import Identity


class OwnedSession(Protocol):
    """A session as the authenticator sees it."""

    @property
    def identity(self) -> Identity:
        """Who opened it."""
        ...

    @property
    def address(self) -> str:
        """The client's IP address; empty where it has none."""
        ...

    def end(self, reason: str) -> None:
        """End the session. Any thread."""
        ...


class OwnedSessions(Protocol):
    """All open sessions of this process."""

    def __iter__(self) -> Iterator[OwnedSession]: ...
