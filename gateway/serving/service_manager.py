"""Tells systemd, or whichever service manager started this process, that it serves, lives, and stops.

The service manager names a datagram socket in `NOTIFY_SOCKET`. If it also sets `WATCHDOG_USEC`, it expects a sign of
life within that time. Otherwise it ends the process (by SIGABRT, at which the process writes its stacks) and starts it
again.

Spec: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

logger = logging.getLogger(__name__)

BEATS: Final = 3
"""Signs of life in one watchdog time. systemd recommends two at least."""

SEND_SECONDS: Final = 1.0
"""How long a message may wait while the service manager does not read. The kernel keeps ten."""

_ALIVE: Final = "WATCHDOG=1"


class ServiceManager:
    """The service manager of this process. Without one, nothing is sent.

    Threads: for one thread only. No method raises. A sign of life that cannot be sent at once is left out.
    """

    def __init__(self, address: str = "", watchdog_seconds: float = 0.0) -> None:
        """`address`: of a Unix socket, `@` before an abstract one; empty for none. `watchdog_seconds`: 0 for none."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._beat_seconds = watchdog_seconds / BEATS
        self._next_beat = 0.0
        self._has_failed = False

    @classmethod
    def take_from(cls, environ: MutableMapping[str, str]) -> ServiceManager:
        """Read the variables and remove them: they are for this process, and not for its children."""
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_meant = pid in ("", str(os.getpid())) and microseconds.isdecimal()
        return cls(address, int(microseconds) / 1e6 if is_meant else 0.0)

    def report_ready(self) -> None:
        """Say that the host serves, or that a reload is done."""
        self._send("READY=1")

    def report_reloading(self) -> None:
        """Say that a reload has begun. `report_ready` says that it is done."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def report_stopping(self) -> None:
        """Say that the host drains."""
        self._send("STOPPING=1")

    def report_alive(self) -> None:
        """Give a sign of life, if one is due."""
        now = time.monotonic()
        if self._beat_seconds and now >= self._next_beat:
            self._next_beat = now + self._beat_seconds
            self._send(_ALIVE)

    def watch_loop(self) -> None:
        """Give signs of life as long as the running event loop runs."""
        if self._beat_seconds:
            self._send(_ALIVE)
            asyncio.get_running_loop().call_later(self._beat_seconds, self.watch_loop)

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(0.0 if message == _ALIVE else SEND_SECONDS)
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._has_failed:
                logger.warning("The service manager cannot be told %s: %s", message.partition("\n")[0], error)
            self._has_failed = True
        else:
            self._has_failed = False
