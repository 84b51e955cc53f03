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
    slot: int | None = None
    """The owner's slot on that node. Requests for one slot share connections, which end up with its worker."""
    handover: str = ""
    """The path of the Unix socket where the owner takes connections; empty if it is on another node."""


@dataclass(frozen=True, slots=True)
class Node:
    """Another machine."""

    address: str
    """Where it is reached."""
    slots: int = 1
    """How many workers it has. If this is wrong, its workers relay more among themselves."""


def slot_path(folder: Path, slot: int) -> Path:
    """Where the worker that has a slot now is reached: a link to its socket, which its successor replaces."""
    return folder / f"{slot}.sock"


def handover_path(relay_path: Path) -> Path:
    """Where a worker takes connections, given the path where it takes relayed requests."""
    return relay_path.with_suffix(".take")


class Ownership:
    """Which process owns a key. `find` is called on the worker's loop, `set_nodes` in any thread."""

    def __init__(self, slot: int, slots: int, folder: Path, node: str = "") -> None:
        """`node`: this machine in the ring of nodes; empty if there is only one machine."""
        self._slot = slot
        self._node = node
        paths = {str(number): slot_path(folder, number) for number in range(slots)}
        self._routes = {
            slot: Route(str(path), slot=int(slot), handover=str(handover_path(path))) for slot, path in paths.items()
        }
        self._slots = Ring(list(self._routes))
        self._nodes: dict[str, Node] = {}
        # Replaced as a whole, so that a request never sees half of a change.
        self._rings: tuple[Ring, Ring, dict[str, tuple[Ring, dict[str, Route]]]] | None = None
        """The ring of all nodes, that of the other nodes, and of each of these its slots; None without other nodes."""
        self.has_left = False
        """Whether this worker drains: its slot belongs to its successor."""
        self.node_has_left = False
        """Whether all workers of this node drain: its keys belong to other nodes."""

    def set_nodes(self, nodes: dict[str, Node]) -> None:
        """Take the other nodes, by name."""
        if nodes == self._nodes:
            return
        self._nodes = nodes
        routes = {
            name: (
                Ring([str(slot) for slot in range(node.slots)]),
                {str(slot): Route(node.address, is_node=True, slot=slot) for slot in range(node.slots)},
            )
            for name, node in nodes.items()
        }
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
                slots, ways = routes[node]
                return ways[slots.owner(key)]
        if self.node_has_left:
            return None
        owner = self._slots.owner(key)
        return None if owner == str(self._slot) and not self.has_left else self._routes[owner]
