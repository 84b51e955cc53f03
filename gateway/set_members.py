"""Keeps something in a set for the time of a block."""

from typing import Generic, TypeVar

T = TypeVar("T")


class MemberWhile(Generic[T]):
    """`member` is in `members` inside the block.

    Every request enters such blocks. Made by `contextlib.contextmanager`, they would cost three times as much.
    """

    __slots__ = ("_member", "_members")

    def __init__(self, members: set[T], member: T) -> None:
        self._members = members
        self._member = member

    def __enter__(self) -> None:
        self._members.add(self._member)

    def __exit__(self, *raised: object) -> None:
        self._members.discard(self._member)
