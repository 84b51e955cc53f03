"""The instances that nobody uses, and which of them makes room when the host is full.

Every instance belongs to a share: the user's if keys are checked, else the client address's. The largest share makes
room, with the instance that has been idle longest in it. So somebody who invents 10 000 user ids loses their own
instances, not everybody's. While every share has one instance, this is the longest idle instance of all.
"""

from collections import OrderedDict
from collections.abc import Iterator

from gateway.access.identity import Identity
from gateway.http.addresses import counted_address
from gateway.instances.instance import Instance


class IdleInstances:
    """Idle instances by share. Every operation takes constant time. Used on the host's loop."""

    def __init__(self) -> None:
        self._shares: dict[str, OrderedDict[Instance, None]] = {}
        """The idle instances of each share, the longest idle first."""
        self._by_size: dict[int, OrderedDict[str, None]] = {}
        """The shares with so many idle instances. The share that has had this size longest comes first."""
        self._largest = 0
        """The size of the largest share."""

    def add(self, instance: Instance) -> None:
        """Add an instance that was not idle until now."""
        share = self._shares.setdefault(instance.share, OrderedDict())
        share[instance] = None
        self._move(instance.share, len(share) - 1, len(share))

    def discard(self, instance: Instance) -> None:
        """Remove `instance`, if it is idle."""
        share = self._shares.get(instance.share)
        if share is not None and instance in share:
            del share[instance]
            if not share:
                del self._shares[instance.share]
            self._move(instance.share, len(share) + 1, len(share))

    def pop(self) -> Instance | None:
        """Remove and return the instance that makes room; None if no instance is idle."""
        if not self._largest:
            return None
        name = next(iter(self._by_size[self._largest]))
        instance = next(iter(self._shares[name]))
        self.discard(instance)
        return instance

    def clear(self) -> None:
        """Remove all instances."""
        self._shares.clear()
        self._by_size.clear()
        self._largest = 0

    def __iter__(self) -> Iterator[Instance]:
        return (instance for share in list(self._shares.values()) for instance in list(share))

    def _move(self, name: str, old_size: int, new_size: int) -> None:
        """Note that a share has grown or shrunk by one."""
        if old_size:
            names = self._by_size[old_size]
            del names[name]
            if not names:
                del self._by_size[old_size]
        if new_size:
            self._by_size.setdefault(new_size, OrderedDict())[name] = None
        if new_size > self._largest or self._largest not in self._by_size:
            self._largest = new_size


def share_of(identity: Identity, address: str) -> str:
    """The share that an instance of `identity` belongs to, if a client at `address` makes it."""
    if identity.grant is not None:
        return f"user {identity.user_id}"
    return f"address {counted_address(address)}"
