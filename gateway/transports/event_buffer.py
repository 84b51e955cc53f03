"""What a session has sent on its streams lately, so that a client which lost a stream can continue where it was.

Spec: 2025-11-25 basic/transports#resumability-and-redelivery.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final

from mcp_types import RequestId

from gateway.transports.message_budget import MessageMemory
from gateway.transports.shared_events import ENDED, EVENT, OPENED

STANDALONE: Final = 0
"""The number of the stream that belongs to no request."""


class EventBuffer:
    """The last events of all streams of one session, bounded in number and size. Used in the lane.

    An event that was not sent yet is kept whatever its size, as long as no later one comes: its client may still
    connect. Once it was sent (`note_sent`), the bounds hold for it too.

    Event ids are `{stream}-{sequence}`. The sequence runs over all streams of the session, and begins above all that
    the session had in other processes.
    """

    def __init__(
        self,
        max_events: int,
        max_bytes: int,
        floor: int = 0,
        share: Callable[[int, bytes, int, bytes], object] | None = None,
    ) -> None:
        """`floor`: event ids up to this sequence were given out by processes that had the session before.

        `share` is called with each event (stream, kind, sequence, data), for other processes: `shared_events`.
        """
        self._share = share
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._events: deque[tuple[int, int, bytes]] = deque()
        self._memory: MessageMemory | None = None
        """What the newest event holds, if it alone is larger than all events may be."""
        self._is_closed = False
        self._bytes = 0
        self.floor = floor
        self._last_sequence = floor
        self._kept: Counter[int] = Counter()
        """Stream -> how many of its events are kept."""
        self._dropped: dict[int, int] = {}
        """Stream -> the sequence of its newest event that was dropped. A client that has read it has missed nothing."""
        self._live: set[int] = set()
        """Streams that may get more events."""

    def append(self, stream: int, data: bytes, memory: MessageMemory | None = None) -> bytes:
        """Keep an event and return its id. `data` is empty for an event that only marks a place.

        `memory` is held while the event is kept, if it is larger than all events may be together.
        """
        self._last_sequence += 1
        self._events.append((stream, self._last_sequence, data))
        self._bytes += len(data)
        self._kept[stream] += 1
        self._live.add(stream)
        self._drop(keep=1)
        if memory is not None and self.is_too_large and not self._is_closed:
            memory.keep()
            self._memory = memory
        if self._share is not None:
            self._share(stream, EVENT, self._last_sequence, data)
        return b"%d-%d" % (stream, self._last_sequence)

    @property
    def is_too_large(self) -> bool:
        """Whether the newest event alone is larger than all events may be: it is kept until it was sent."""
        return self._bytes > self._max_bytes

    @property
    def memory(self) -> MessageMemory | None:
        """What the newest event holds, if it is too large."""
        return self._memory

    def close(self) -> None:
        """Hold no memory any more: the session has ended. A second call changes nothing."""
        self._is_closed = True
        self._release()

    def _release(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.release()

    def note_sent(self, sequence: int) -> None:
        """Note that clients have read every event up to `sequence`."""
        if sequence >= self._last_sequence:
            self._drop(keep=0)

    def _drop(self, *, keep: int) -> None:
        """Drop the oldest events until the rest is within the bounds, or `keep` of them are left."""
        while len(self._events) > self._max_events or (self._bytes > self._max_bytes and len(self._events) > keep):
            stream, sequence, data = self._events.popleft()
            self._bytes -= len(data)
            if len(data) > self._max_bytes:
                self._release()
            self._kept[stream] -= 1
            self._dropped[stream] = sequence
            self._forget_if_over(stream)

    def open(self, stream: int, requests: Iterable[RequestId]) -> None:
        """Note that a stream opens. `requests`: the ids of those that it will answer."""
        if self._share is not None:
            self._share(stream, OPENED, self._last_sequence, json.dumps(list(requests)).encode())

    def end(self, stream: int) -> None:
        """Note that `stream` gets no more events. Its kept events stay."""
        if self._share is not None and stream in self._live:
            self._share(stream, ENDED, self._last_sequence, b"")
        self._live.discard(stream)
        self._forget_if_over(stream)

    def _forget_if_over(self, stream: int) -> None:
        if stream not in self._live and not self._kept[stream]:
            del self._kept[stream]
            self._dropped.pop(stream, None)

    def after(self, event_id: str) -> tuple[int, list[tuple[bytes, bytes]]] | None:
        """The stream of `event_id`, and the events (id, data) that followed on it.

        None if the id is not one of this session's, or if later events of its stream have been dropped: a replay with
        a gap would hide that answers were lost.
        """
        parts = _parts(event_id)
        if parts is None:
            return None
        stream, sequence = parts
        if self._dropped.get(stream) != sequence and not any(
            kept_stream == stream and kept == sequence for kept_stream, kept, _ in self._events
        ):
            return None
        return stream, self.later_than(stream, sequence)

    def older(self, event_id: str) -> tuple[int, int] | None:
        """Stream and sequence of an id that a process before this one has given out; None if it is another id."""
        parts = _parts(event_id)
        return parts if parts is not None and 0 < parts[1] <= self.floor else None

    def later_than(self, stream: int, sequence: int) -> list[tuple[bytes, bytes]]:
        """The kept events (id, data) of `stream` that came after `sequence`."""
        return [
            (b"%d-%d" % (stream, kept), data)
            for kept_stream, kept, data in self._events
            if kept_stream == stream and kept > sequence and data
        ]

    @property
    def last_sequence(self) -> int:
        """The sequence of the newest event; 0 before the first."""
        return self._last_sequence


def _parts(event_id: str) -> tuple[int, int] | None:
    """The stream and the sequence of an event id; None if it cannot be one."""
    stream, _, sequence = event_id.partition("-")
    if not (event_id.isascii() and stream.isdecimal() and sequence.isdecimal() and len(event_id) < 40):
        return None
    return int(stream), int(sequence)
