"""The rows of host processes: what each process says about itself, and what follows from the rows of all.

Times are the database's: the clocks of several machines differ. Not here: who writes the row and when (`recorder`).
"""

import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from django.db.models import QuerySet
from django.db.models.functions import Now

from gateway.records.models import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS, HostProcess
from gateway.storable import storable

MEMBER_BEAT_SECONDS: Final = 1.0
"""How often a process of several machines writes that it is alive: the others give its users to somebody else soon
after it has died."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process is in a fleet."""

    slot: int | None = None
    """Its number among the workers of its supervisor; None for a process that is alone."""
    node: str = ""
    """The machine in the ring, `host:port` as a load balancer names it; empty if there is only one."""
    peer_address: str = ""
    """Where other nodes reach this one."""

    @property
    def beat_seconds(self) -> float:
        """How often the process writes that it is alive."""
        return MEMBER_BEAT_SECONDS if self.node else HEARTBEAT_SECONDS


class LoadMeter:
    """How much of a processor core this process uses."""

    def __init__(self) -> None:
        self._cpu, self._at = time.process_time(), time.monotonic()

    def take(self) -> float:
        """The share since the last call; 1.0 is one core."""
        cpu, at = time.process_time(), time.monotonic()
        share = (cpu - self._cpu) / max(at - self._at, 0.001)
        self._cpu, self._at = cpu, at
        return round(share, 3)


def running_hosts(within_seconds: float = DEAD_AFTER_SECONDS) -> "QuerySet[HostProcess]":
    """The rows of the processes that have been heard of lately."""
    return HostProcess.objects.filter(last_seen_at__gte=Now() - timedelta(seconds=within_seconds))


def conditions_of_servers() -> dict[str, str]:
    """What is wrong with which server now, in any process that runs: server name -> text."""
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for conditions in running_hosts().order_by("started_at").values_list("conditions", flat=True):
        for server_name, text in conditions.items():
            if text not in texts[server_name]:
                texts[server_name].append(text)
    return {server_name: storable("; ".join(found), 500) for server_name, found in texts.items()}
