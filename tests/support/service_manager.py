"""The side of systemd in sd_notify(3): a datagram socket that takes what a service tells."""

from __future__ import annotations

import secrets
import socket
import threading
from types import TracebackType


class Told:
    """A context manager. Inside it, `messages` is what has been told so far at `address`, signs of life included."""

    def __init__(self) -> None:
        self.address = f"@gumcp-test-{secrets.token_hex(8)}"
        self.messages: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # The kernel keeps ten messages that nobody has read.
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while message := self._socket.recv(4096):
            self.messages.append(message.decode())

    def __enter__(self) -> Told:
        self._socket.bind("\0" + self.address[1:])
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", "\0" + self.address[1:])
        self._thread.join()
        self._socket.close()
