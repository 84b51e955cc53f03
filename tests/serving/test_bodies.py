"""Which of the bodies that are being read is dropped."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.serving.bodies import SMALL_BYTES, UnfinishedBodies

LARGE = 100_000


@dataclass(eq=False)
class Reader:
    address: str | None


def test_nobody_gives_way_up_to_the_limit() -> None:
    bodies = UnfinishedBodies[Reader](2 * LARGE)
    reader, other = Reader("a"), Reader("a")
    bodies.note(reader, LARGE - 1)
    bodies.note(other, LARGE)
    bodies.note(reader, LARGE)
    assert bodies.held_bytes == 2 * LARGE
    assert bodies.pop_surplus() is None


def test_oldest_gives_way_and_no_more_than_have_to() -> None:
    bodies = UnfinishedBodies[Reader](4 * LARGE)
    readers = [Reader(f"{number}") for number in range(5)]
    for reader in readers:
        bodies.note(reader, LARGE)
    assert bodies.pop_surplus() is readers[0]
    assert bodies.pop_surplus() is None
    assert bodies.held_bytes == 4 * LARGE


def test_address_beyond_its_share_gives_way_to_older_bodies_of_others() -> None:
    bodies = UnfinishedBodies[Reader](4 * LARGE)
    older = Reader("other")
    bodies.note(older, LARGE)
    greedy = [Reader("greedy") for _ in range(4)]
    for reader in greedy:
        bodies.note(reader, LARGE)
    assert bodies.pop_surplus() is greedy[0]


def test_large_ones_give_way_before_older_small_ones() -> None:
    bodies = UnfinishedBodies[Reader](LARGE)
    small, large = Reader(None), Reader(None)
    bodies.note(small, SMALL_BYTES)
    bodies.note(large, LARGE)
    assert bodies.pop_surplus() is large
    assert bodies.pop_surplus() is None


def test_small_ones_alone_are_limited_too() -> None:
    bodies = UnfinishedBodies[Reader](LARGE)
    readers = [Reader("a") for _ in range(3)]
    for reader in readers:
        bodies.note(reader, 40_000)
    assert bodies.pop_surplus() is readers[0]


def test_who_is_forgotten_holds_nothing() -> None:
    bodies = UnfinishedBodies[Reader](LARGE)
    reader = Reader("a")
    bodies.note(reader, 10)
    bodies.note(reader, LARGE + 1)
    bodies.forget(reader)
    bodies.forget(reader)
    assert bodies.held_bytes == 0
    assert bodies.pop_surplus() is None
    assert not bodies._by_address
