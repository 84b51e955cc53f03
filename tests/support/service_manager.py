"""The side of systemd in sd_notify(3): a datagram socket that takes what a service tells."""

from __future__ import annotations

import secrets
import socket
from types import TracebackType


class Told:
    """A context manager. Inside it, `messages` is what has been told so far at `address`, signs of life included."""

    def __init__(self) -> None:
        self.address = f"@gumcp-test-{secrets.token_hex(8)}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._messages: list[str] = []

    @property
    def messages(self) -> list[str]:
        while True:
            try:
                self._messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return self._messages

    def __enter__(self) -> Told:
        self.socket.bind("\0" + self.address[1:])
        self.socket.setblocking(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()
