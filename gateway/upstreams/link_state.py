"""What operators see of one link. Imports nothing, so that pages need not import the SDK's client."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkState:
    """What operators see of one link."""

    user_id: str
    is_open: bool
    pid: int | None
    """Of the launcher, which is the parent of the server's processes; None for remote servers and ended ones."""
    starts: int
    started_at: float | None
    """When it was started last (seconds since the epoch)."""
    ending: str
    """Why the last one ended; empty if none has."""
