"""What a session has sent on its streams lately, so that a client which lost one can go on where it was.

Spec: 2025-11-25 basic/transports#resumability-and-redelivery.
"""

from collections import Counter, deque
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
        self._kept: Counter[int] = Counter()
        """How many events of each stream are kept."""
        self._dropped: dict[int, int] = {}
        """The newest sequence that is gone of each stream: who has read that one has missed nothing."""
        self._live: set[int] = set()
        """Streams that may get more events."""

    def append(self, stream: int, data: bytes) -> bytes:
        """Keep an event and return its id. `data` is empty for an event that only marks a place."""
        self._last_sequence += 1
        self._events.append((stream, self._last_sequence, data))
        self._bytes += len(data)
        self._kept[stream] += 1
        self._live.add(stream)
        while len(self._events) > self._max_events or (self._bytes > self._max_bytes and len(self._events) > 1):
            dropped_stream, sequence, dropped = self._events.popleft()
            self._bytes -= len(dropped)
            self._kept[dropped_stream] -= 1
            self._dropped[dropped_stream] = sequence
            self._forget_if_over(dropped_stream)
        return b"%d-%d" % (stream, self._last_sequence)

    def end(self, stream: int) -> None:
        """Note that `stream` gets no more events. What is kept of it stays."""
        self._live.discard(stream)
        self._forget_if_over(stream)

    def _forget_if_over(self, stream: int) -> None:
        if stream not in self._live and not self._kept[stream]:
            del self._kept[stream]
            self._dropped.pop(stream, None)

    def after(self, event_id: str) -> tuple[int, list[tuple[bytes, bytes]]] | None:
        """The stream of `event_id` and the events (id, data) that followed on it.

        None where the id is none of this session's, or events of its stream after it have been dropped: replaying with
        a gap would hide that answers were lost.
        """
        stream_text, _, sequence_text = event_id.partition("-")
        if not (event_id.isascii() and stream_text.isdecimal() and sequence_text.isdecimal() and len(event_id) < 40):
            return None
        stream, sequence = int(stream_text), int(sequence_text)
        if self._dropped.get(stream) != sequence and not any(
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
