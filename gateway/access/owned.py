"""What access needs to know of a session: whose it is, where it came from, whether it is in use, and how it is ended.

The sessions themselves: `gateway.transports.sessions`, which this package does not import.
"""

from collections.abc import Iterator
from typing import Protocol

from gateway.access.identity import Identity


class OwnedSession(Protocol):
    """A session as access sees it."""

    @property
    def identity(self) -> Identity:
        """Who opened it."""
        ...

    @property
    def address(self) -> str:
        """The client's IP address; empty where it has none."""
        ...

    @property
    def last_used(self) -> float:
        """When a message passed or a request ended last (monotonic seconds)."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether it may make room for a new session: it has no open stream and no request under way."""
        ...

    def end(self, reason: str) -> None:
        """End the session. Any thread."""
        ...


class OwnedSessions(Protocol):
    """All open sessions of this process."""

    def __iter__(self) -> Iterator[OwnedSession]: ...
