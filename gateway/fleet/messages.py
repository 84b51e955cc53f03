"""What a supervisor and its workers tell each other: JSON objects, one a line, on a socket pair."""

import json
import socket
from collections.abc import Iterator
from typing import Any, Final

MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""The longest message: a snapshot of all metrics."""


class Lines:
    """One end of a socket pair. Not safe for threads; each end has one reader and one writer."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._buffer = bytearray()

    def send(self, message: dict[str, Any]) -> bool:
        """Send one message. Returns False if the other side has gone."""
        try:
            self.socket.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[dict[str, Any]] | None:
        """What has arrived; None if the other side has gone. Waits for at least a part of a message."""
        try:
            data = self.socket.recv(1024 * 1024)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self._buffer += data
        return list(self._whole())

    def _whole(self) -> Iterator[dict[str, Any]]:
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            yield json.loads(line)
        if len(self._buffer) > MAX_LINE_BYTES:
            raise ValueError("A message is longer than any can be.")
