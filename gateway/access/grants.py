"""What a key allows now: one `Grant` for each key that is in use.

Everything that a key has opened shares its grant. `key_watch` updates the grant in place, so that changes by operators
apply to open sessions too. A grant has the digest and the public part of its key, never the text.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from gateway.set_members import MemberWhile

if TYPE_CHECKING:  # it takes long to import, and every command imports this module
    from gateway.access.limits import RateLimits

AllowedTools = Mapping[str, frozenset[str] | None]
"""Server name -> the tools that may be called there; None for all of them."""


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What the row of one key says."""

    key_id: int
    public: str
    digest: bytes
    user_id: str
    """The name of the user it belongs to."""
    servers: AllowedTools | None
    """Where it may be used; None for everywhere."""
    expires_at: datetime | None
    is_active: bool
    """False after the key was revoked or its user was disabled."""


class Grant:
    """The permissions of one key.

    Threads: the watch and look-ups replace `facts`, which any thread may read. All else is for the host's loop.
    """

    __slots__ = (
        "__weakref__",
        "_closers",
        "confirmed_at",
        "facts",
        "last_used",
        "limits",
        "requests",
        "sessions",
        "written_use",
    )

    def __init__(self, facts: KeyFacts, confirmed_at: float, limits: "RateLimits") -> None:
        self.facts = facts
        self.limits = limits
        self.confirmed_at = confirmed_at
        """When the row was last read (monotonic seconds)."""
        self.last_used = 0.0
        """Seconds since the epoch of the last request."""
        self.written_use = 0.0
        """The value of `last_used` that is in the row."""
        self.sessions = 0
        """How many sessions and listeners it has open in this process."""
        self.requests = 0
        """How many requests with this key are being answered."""
        self._closers: set[Callable[[], object]] = set()

    @property
    def public(self) -> str:
        """The part of the key that may be written down."""
        return self.facts.public

    @property
    def is_valid(self) -> bool:
        """Whether the key may still be used, by what was last read."""
        facts = self.facts
        return facts.is_active and (facts.expires_at is None or facts.expires_at.timestamp() > time.time())

    @property
    def why_invalid(self) -> str:
        """Why the key may not be used, for operators; empty if it may."""
        if not self.facts.is_active:
            return "the key was revoked, or its user was disabled"
        return "" if self.is_valid else "the key has expired"

    def allows_server(self, server_name: str) -> bool:
        """Whether the key may be used on `server_name`."""
        servers = self.facts.servers
        return servers is None or server_name in servers

    def allowed_tools(self, server_name: str) -> frozenset[str] | None:
        """The tools that may be called on `server_name`; None for all."""
        servers = self.facts.servers
        return None if servers is None else servers.get(server_name, frozenset())

    @property
    def is_in_use(self) -> bool:
        """Whether something is open under the key."""
        return bool(self.sessions or self._closers)

    def answering(self) -> AbstractContextManager[None]:
        """Keep the grant up to date inside the block, however long the request takes."""
        return _Answering(self)

    def closing(self, close: Callable[[], object]) -> AbstractContextManager[None]:
        """Call `close`, on the host's loop, if the key is revoked inside the block."""
        return MemberWhile(self._closers, close)

    def close_all(self) -> None:
        """Call the functions that `closing` holds. Call it on the host's loop."""
        for close in list(self._closers):
            close()


class _Answering:
    # Not made by `contextmanager`, for the reason that `MemberWhile` gives.
    __slots__ = ("_grant",)

    def __init__(self, grant: Grant) -> None:
        self._grant = grant

    def __enter__(self) -> None:
        self._grant.requests += 1

    def __exit__(self, *raised: object) -> None:
        self._grant.requests -= 1
