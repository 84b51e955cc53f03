"""Limits what all bodies together hold that are being read, and decides which of them is dropped.

Plain Python, without Twisted. A body counts until it is whole or its connection ends, with the bytes that have come and
not with those that were announced. A whole body belongs to its application.

The oldest body is dropped first: honest clients finish quickly. If one address holds more than its share, it is the
oldest of that address. Small bodies are dropped only when there is no large one, because a few large bodies hold as
much as thousands of small ones. Behind a proxy all clients have one address: there only age and size decide.
"""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from typing import Final, Generic, Protocol, TypeVar

SMALL_BYTES: Final = 48 * 1024
"""Up to this size a body is small, as nearly every JSON-RPC message is. It is less than the 64 KiB that are read at
once, so that a large body counts as large from its first part."""

ADDRESS_SHARE: Final = 0.25
"""The part of the limit that one address may hold before its bodies are dropped first."""


class Reader(Protocol):
    """A connection, as far as it reads a body."""

    address: str | None
    """What it is counted under."""


ReaderT = TypeVar("ReaderT", bound=Reader)


class UnfinishedBodies(Generic[ReaderT]):
    """The bytes that each reader holds. `pop_surplus` must be called until the sum is below the limit."""

    def __init__(self, limit_bytes: int) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        self._by_address: Counter[str | None] = Counter()
        # In the order of age: since they began, and since they became large.
        self._small: dict[ReaderT, int] = {}
        self._large: dict[ReaderT, int] = {}

    def note(self, reader: ReaderT, size_bytes: int) -> None:
        """Remember how much `reader` holds by now."""
        before = self._small.get(reader, 0) or self._large.get(reader, 0)
        if size_bytes <= SMALL_BYTES:
            self._small[reader] = size_bytes
        else:
            self._small.pop(reader, None)
            self._large[reader] = size_bytes
        self._add(reader, size_bytes - before)

    def forget(self, reader: ReaderT) -> None:
        """Remember that `reader` holds nothing. Calling it again changes nothing."""
        self._add(reader, -(self._small.pop(reader, 0) + self._large.pop(reader, 0)))

    def pop_surplus(self) -> ReaderT | None:
        """Choose the reader whose body is to be dropped, forget it and return it; None below the limit."""
        if self.held_bytes <= self._limit_bytes:
            return None
        heaviest, weight_bytes = max(self._by_address.items(), key=itemgetter(1))
        takes_too_much = weight_bytes > self._limit_bytes * ADDRESS_SHARE
        for readers in (self._large, self._small):
            for reader in readers:
                if not takes_too_much or reader.address == heaviest:
                    self.forget(reader)
                    return reader
        raise AssertionError("bytes are held, so a reader holds them")

    def _add(self, reader: ReaderT, size_bytes: int) -> None:
        self.held_bytes += size_bytes
        self._by_address[reader.address] += size_bytes
        if not self._by_address[reader.address]:
            del self._by_address[reader.address]
