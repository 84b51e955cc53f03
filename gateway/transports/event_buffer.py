"""What a session has sent on its streams lately, so that a client which lost one can go on where it was.

Spec: 2025-11-25 basic/transports#resumability-and-redelivery.
"""

from collections import deque
from typing import Final

STANDALONE: Final = 0
"""The number of the stream that belongs to no call."""


class EventBuffer:
    """The last events of all streams of one session, bounded in number and bytes. Used in one lane only.

    Event ids are `{stream}-{sequence}`; the sequence runs over all streams of the session.
    """

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._events: deque[tuple[int, int, bytes]] = deque()
        self._bytes = 0
        self._last_sequence = 0
        self._dropped_through = 0
        """Events up to this sequence are gone."""

    def append(self, stream: int, data: bytes) -> bytes:
        """Keep an event and return its id. `data` is empty for an event that only marks a place."""
        self._last_sequence += 1
        self._events.append((stream, self._last_sequence, data))
        self._bytes += len(data)
        while len(self._events) > self._max_events or (self._bytes > self._max_bytes and len(self._events) > 1):
            _, self._dropped_through, dropped = self._events.popleft()
            self._bytes -= len(dropped)
        return b"%d-%d" % (stream, self._last_sequence)

    def after(self, event_id: str) -> tuple[int, list[tuple[bytes, bytes]]] | None:
        """The stream of `event_id` and the events (id, data) that followed on it.

        None where the id is none of this session's, or events after it have been dropped: replaying with a gap would
        hide that answers were lost.
        """
        stream_text, _, sequence_text = event_id.partition("-")
        if not (stream_text.isdecimal() and sequence_text.isdecimal() and len(event_id) < 40):
            return None
        stream, sequence = int(stream_text), int(sequence_text)
        if not self._dropped_through <= sequence <= self._last_sequence:
            return None
        if sequence > self._dropped_through and not any(
            kept_stream == stream and kept == sequence for kept_stream, kept, _ in self._events
        ):
            return None
        return stream, self.later_than(stream, sequence)

    def later_than(self, stream: int, sequence: int) -> list[tuple[bytes, bytes]]:
        """The events (id, data) of `stream` that are kept and came after `sequence`."""
        return [
            (b"%d-%d" % (stream, kept), data)
            for kept_stream, kept, data in self._events
            if kept_stream == stream and kept > sequence and data
        ]

    @property
    def last_sequence(self) -> int:
        """The sequence of the newest event; 0 before the first."""
        return self._last_sequence
