"""Shares the event loop between large bodies and all other requests.

A turn of the loop reads every socket that has something to say. While many clients send large bodies, a small request
would wait for all of them, several times. So only a few large bodies are read in each turn; the others wait in line.
What clients send on after a refusal counts as such a body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

BODIES_PER_TURN: Final = 8
"""How many large bodies are read in one turn of the loop, up to 64 KiB of each."""


class BodyReader(Protocol):
    """A connection that is reading a large body."""

    def take_turn(self) -> None:
        """Read on."""


class BodyTurns:
    """The large bodies that are being read, and the line of those that wait for their turn."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], Any]) -> None:
        """`call_soon` calls a function in the next turn of the loop."""
        self._call_soon = call_soon
        self._readers: set[BodyReader] = set()
        self._line: dict[BodyReader, None] = {}
        self._is_scheduled = False

    def wait(self, reader: BodyReader) -> bool:
        """Note that `reader` has read a part of its body; True if it must wait for `take_turn` to read on."""
        self._readers.add(reader)
        if len(self._readers) <= BODIES_PER_TURN:
            return False
        self._line[reader] = None
        if not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self._give_turns)
        return True

    def skip(self, reader: BodyReader) -> None:
        """Note that `reader` does not wait for a turn any more. Calling it again changes nothing."""
        self._line.pop(reader, None)

    def leave(self, reader: BodyReader) -> None:
        """Forget `reader`: its body is whole, or its connection has ended. Calling it again changes nothing."""
        self._readers.discard(reader)
        self.skip(reader)

    @property
    def is_idle(self) -> bool:
        """Whether no large body is being read."""
        return not self._readers

    def _give_turns(self) -> None:
        for reader in list(self._line)[:BODIES_PER_TURN]:
            del self._line[reader]
            reader.take_turn()
        self._is_scheduled = bool(self._line)
        if self._is_scheduled:
            self._call_soon(self._give_turns)
