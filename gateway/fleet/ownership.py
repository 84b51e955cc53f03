"""Who owns a key, as one worker sees it: a node, and on this node a slot.

Both levels are rings. With one machine there is only the second.
"""

from dataclasses import dataclass
from pathlib import Path

from gateway.fleet.ring import Ring


@dataclass(frozen=True, slots=True)
class Route:
    """Where the owner of a key is reached."""

    address: str
    """The path of a Unix socket on this machine, or `host:port` of another node."""
    is_node: bool = False
    """Whether the owner is on another node."""


def slot_path(folder: Path, slot: int) -> Path:
    """Where the worker that has a slot now is reached: a link to its socket, which its successor replaces."""
    return folder / f"{slot}.sock"


class Ownership:
    """Which process owns a key. `find` is called on the worker's loop, `set_nodes` in any thread."""

    def __init__(self, slot: int, slots: int, folder: Path, node: str = "") -> None:
        """`node`: this machine in the ring of nodes; empty if there is only one machine."""
        self._slot = slot
        self._node = node
        self._routes = {str(number): Route(str(slot_path(folder, number))) for number in range(slots)}
        self._slots = Ring(list(self._routes))
        self._nodes: dict[str, str] = {}
        # Replaced as a whole, so that a request never sees half of a change.
        self._rings: tuple[Ring, Ring, dict[str, Route]] | None = None
        """The ring of all nodes, that of the other nodes, and how these are reached; None without other nodes."""
        self.has_left = False
        """Whether this worker drains: its slot belongs to its successor."""
        self.node_has_left = False
        """Whether all workers of this node drain: its keys belong to other nodes."""

    def set_nodes(self, nodes: dict[str, str]) -> None:
        """Take the other nodes: name -> address."""
        if nodes == self._nodes:
            return
        self._nodes = nodes
        routes = {name: Route(address, is_node=True) for name, address in nodes.items()}
        # Sorted, so that every process resolves equal points alike: the first member has them.
        self._rings = (Ring(sorted([self._node, *nodes])), Ring(sorted(nodes)), routes) if nodes else None

    def find(self, key: bytes, *, is_from_node: bool = False) -> Route | None:
        """The way to the owner of a key; None if this worker is to serve it.

        `is_from_node`: another node has decided that this one is the owner.
        """
        rings = self._rings
        if rings is not None and not is_from_node:
            everybody, others, routes = rings
            node = (others if self.node_has_left else everybody).owner(key)
            if node != self._node:
                return routes[node]
        if self.node_has_left:
            return None
        owner = self._slots.owner(key)
        return None if owner == str(self._slot) and not self.has_left else self._routes[owner]
