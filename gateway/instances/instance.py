"""One instance, as the host sees it: whose it is, who uses it, and what operators are shown of it."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

from mcp_types import CLIENT_INFO_META_KEY

from gateway.access.identity import Identity
from gateway.access.key_search import without_keys
from gateway.catalog.definitions import ServerDefinition
from gateway.instances.dependencies import ServerDependencies
from gateway.instances.lanes import Lane
from gateway.instances.running_server import RunningServer

MAX_FACT_LENGTH: Final = 200
"""The longest name and version of a client that are kept."""


@dataclass(slots=True)
class Activity:
    """The stateless requests of one instance, which belong to no session.

    Threads: written on the host's loop, read by the recorder's thread.
    """

    requests: int = 0
    calls: int = 0
    last: float = 0.0
    """When the last request came (seconds since the epoch); 0 before the first."""
    address: str = ""
    """Where it came from."""
    protocol_version: str = ""
    client_name: str = ""
    client_version: str = ""
    """What the client says of itself, without keys, cut to `MAX_FACT_LENGTH`."""

    def note(self, message: Any, is_call: bool, address: str, protocol_version: str) -> None:
        """Count one request. `message`: its decoded JSON, which may be anything."""
        self.requests += 1
        self.calls += is_call
        self.last = time.time()
        self.address, self.protocol_version = address, protocol_version
        try:
            client = message["params"]["_meta"][CLIENT_INFO_META_KEY]
            name, version = client["name"], client["version"]
        except (TypeError, KeyError, IndexError):
            return
        if isinstance(name, str) and isinstance(version, str):
            self.client_name = without_keys(name[:MAX_FACT_LENGTH])
            self.client_version = without_keys(version[:MAX_FACT_LENGTH])


@dataclass(eq=False, slots=True)
class Instance:
    """One server of one identity.

    Threads: used on the host's loop. The recorder's thread reads `row_id`, `server_name`, `identity`, `started_at` and
    `activity`.
    """

    server_name: str
    identity: Identity
    running: RunningServer
    share: str = ""
    """Whose share of the host's instances it belongs to (`idle_instances`)."""
    row_id: UUID = field(default_factory=uuid4)
    """What operators see."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    uses: int = 0
    """How many connections use it now."""
    idle_since: float = field(default_factory=time.monotonic)
    activity: Activity = field(default_factory=Activity)

    @property
    def lane(self) -> Lane:
        """The thread and event loop that it lives in."""
        return self.running.lane


class InstanceStart:
    """The start of one server for one identity. The host may give it up at any moment.

    Threads: `run` is called in the lane, `give_up` on the host's loop.
    """

    def __init__(self) -> None:
        self._running: RunningServer | None = None
        self._is_given_up = False

    async def run(
        self, definition: ServerDefinition, identity: Identity, lane: Lane, dependencies: ServerDependencies
    ) -> RunningServer:
        """Start the server. Raises `InstanceUnavailable`."""
        running = await RunningServer.start(definition, identity, lane, dependencies)
        self._running = running
        # `give_up` sets its flag before it reads `_running`, and here it is the other way round. So at least one of the
        # two sees what the other has set, and no lifespan stays open.
        if self._is_given_up:
            running.stop()
        return running

    def give_up(self) -> None:
        """Stop the server, now or when it has started."""
        self._is_given_up = True
        if self._running is not None:
            self._running.stop()
