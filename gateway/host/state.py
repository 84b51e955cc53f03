"""Whether the host is well, in one line, and what is wrong with it. Everything comes from memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gateway.alerts.troubles import causes_of_servers
from gateway.host.database_state import database_state

if TYPE_CHECKING:  # Django's pages are checked without the SDK, which this imports
    from gateway.host.host import Host


@dataclass(frozen=True, slots=True)
class HostState:
    """What an operator reads first."""

    level: Literal["well", "degraded", "draining"]
    text: str


def host_state(host: "Host") -> HostState:
    """Whether the host is well, in one line."""
    if host.drain.is_begun:
        seconds = max(0.0, host.drain.seconds_left)
        return HostState("draining", f"Draining: the host was told to stop, and ends in {seconds:.0f} s at the latest.")
    causes = causes_of_servers([failure.name for failure in host.registry.failures], host.lane_watch.blocked_servers)
    if late := database_state(host.recorder):
        causes.append(late)
    if causes:
        return HostState("degraded", f"Degraded: {'; '.join(causes)}.")
    count = len(host.registry)
    return HostState("well", f"Well: {count} {'server is' if count == 1 else 'servers are'} being served.")
