"""Which nodes there are: the machines whose processes have lately written that they are alive.

A thread reads the rows of all processes once a second. While the database is away, the last view holds. Nothing on the
request path waits for it.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from gateway.database_thread import DatabaseOutage, DatabaseThread
from gateway.fleet.ownership import Node
from gateway.records.processes import running_hosts

logger = logging.getLogger(__name__)

READ_SECONDS: Final = 1.0
"""How often the rows are read."""

LOOK_SECONDS: Final = 0.2
"""How long after they were read they may be read again before that."""

SILENT_SECONDS: Final = 5.0
"""A node whose processes have written nothing for so long leaves the ring. They write once a second."""


class Members:
    """The other nodes, by name. `nodes` may be read in any thread."""

    def __init__(self, own_node: str, on_change: Callable[[dict[str, Node]], object]) -> None:
        """`on_change` is called in the thread of the members with the other nodes, whenever they change."""
        self._own_node = own_node
        self._on_change = on_change
        self._outage = DatabaseOutage(
            logger, "The nodes cannot be read, the last ones hold until they can", "The nodes can be read again"
        )
        self._thread = DatabaseThread("members", self._run_round, self._note_failure, interval_seconds=READ_SECONDS)
        self.has_tried = threading.Event()
        """Set once the nodes have been read for the first time, or could not be read."""
        self.nodes: dict[str, Node] = {}
        self._last_read = float("-inf")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. Blocks for a moment: do not call it on an event loop."""
        self._thread.stop()

    def look_soon(self) -> None:
        """Read the rows now, unless that was done just before: a node does not accept connections. Does not block."""
        if time.monotonic() - self._last_read >= LOOK_SECONDS:
            self._thread.wake()

    def _run_round(self, is_last: bool) -> None:
        self._last_read = time.monotonic()
        if not is_last:
            self.read()
            self.has_tried.set()

    def read(self) -> None:
        """Read the rows. Raises `django.db.DatabaseError`."""
        rows = running_hosts(SILENT_SECONDS).filter(is_draining=False).exclude(node__in=["", self._own_node])
        nodes: dict[str, Node] = {}
        for name, address, slot in rows.order_by("node", "slot").values_list("node", "peer_address", "slot"):
            nodes[name] = Node(address, (slot or 0) + 1)
        self._outage.end()
        if nodes != self.nodes:
            if nodes.keys() != self.nodes.keys():
                logger.info("Nodes beside this one: %s", ", ".join(nodes) or "none")
            self.nodes = nodes
            self._on_change(nodes)

    def _note_failure(self, error: Exception) -> None:
        self._outage.begin(error)
        self.has_tried.set()
