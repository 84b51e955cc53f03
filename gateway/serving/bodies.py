"""What the bodies that are being read hold, all together, and which of them goes when that is too much.

Plain Python, without Twisted. A body counts until it is whole or its connection ends, with what has come of it and not
with what was announced. A whole one is its application's.

Who gives way is chosen for the sake of those who mean well: they are quickly done. So it is the oldest body, of the
address that holds the most if that is more than an address's share, and otherwise of all. Small bodies give way only
when there is no large one, for thousands of them weigh what a few large ones do. Behind a proxy all clients have one
address: there age and size alone decide.
"""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from typing import Final, Generic, Protocol, TypeVar

SMALL_BYTES: Final = 64 * 1024
"""Up to here a body is small. Nearly every JSON-RPC message is."""

ADDRESS_SHARE: Final = 0.25
"""How much of the limit an address may hold before it is the first to give way."""


class Reader(Protocol):
    """What reads a body: a connection."""

    address: str | None
    """What is counted together."""


ReaderT = TypeVar("ReaderT", bound=Reader)


class UnfinishedBodies(Generic[ReaderT]):
    """How many bytes each reader holds. Who takes out what is surplus keeps the sum below the limit."""

    def __init__(self, limit_bytes: int) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        self._by_address: Counter[str | None] = Counter()
        # In the order of their age: since they began, and since they became large.
        self._small: dict[ReaderT, int] = {}
        self._large: dict[ReaderT, int] = {}

    def note(self, reader: ReaderT, size_bytes: int) -> None:
        """Remember that `reader` holds so much by now."""
        before = self._small.get(reader, 0) or self._large.get(reader, 0)
        if size_bytes <= SMALL_BYTES:
            self._small[reader] = size_bytes
        else:
            self._small.pop(reader, None)
            self._large[reader] = size_bytes
        self._add(reader, size_bytes - before)

    def forget(self, reader: ReaderT) -> None:
        """Remember that `reader` holds nothing. Twice is the same as once."""
        self._add(reader, -(self._small.pop(reader, 0) + self._large.pop(reader, 0)))

    def pop_surplus(self) -> ReaderT | None:
        """Forget one who has to give way, and return it; None when nobody has to."""
        if self.held_bytes <= self._limit_bytes:
            return None
        heaviest, weight_bytes = max(self._by_address.items(), key=itemgetter(1))
        takes_too_much = weight_bytes > self._limit_bytes * ADDRESS_SHARE
        for readers in (self._large, self._small):
            for reader in readers:
                if not takes_too_much or reader.address == heaviest:
                    self.forget(reader)
                    return reader
        raise AssertionError("somebody holds what is held")

    def _add(self, reader: ReaderT, size_bytes: int) -> None:
        self.held_bytes += size_bytes
        self._by_address[reader.address] += size_bytes
        if not self._by_address[reader.address]:
            del self._by_address[reader.address]
