"""The open event streams of this process: counts them, keeps silent ones open, and ends slow ones."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from gateway import metrics, signals
from gateway.transports.event_stream import EventStream


class Streams:
    """The event streams that are open now."""

    def __init__(self) -> None:
        self._open: set[EventStream] = set()

    @contextmanager
    def open(self, stream: EventStream, server_name: str) -> Iterator[EventStream]:
        """Count `stream` as open inside the block. A signal is sent at each end of it, so the gauge cannot drift."""
        self._open.add(stream)
        signals.stream_opened.send_robust(Streams, server_name=server_name)
        try:
            yield stream
        finally:
            self._open.discard(stream)
            signals.stream_closed.send_robust(Streams, server_name=server_name)
            if stream.was_slow:
                metrics.slow_readers.labels(server_name).inc()

    def keep_up(self, silence_seconds: float) -> None:
        """Send a comment on each stream that was silent for `silence_seconds`. End streams whose clients are too slow.

        Call it regularly. One clock for all streams costs less than a timer for each.
        """
        now = time.monotonic()
        for stream in list(self._open):
            stream.comment_if_silent(now, silence_seconds)
            stream.give_up_if_slow(now)

    def cut_all(self) -> None:
        """End every stream now."""
        for stream in list(self._open):
            stream.cut()

    def __len__(self) -> int:
        return len(self._open)
