"""A worker's side of a fleet: what the supervisor tells it, and what it answers.

A worker has a slot, which its successor inherits. It serves the listening socket that all workers share, two Unix
sockets of its own, for connections that other workers give it and for requests that they relay to it, and with several
machines the peer port, which all workers share too.
"""

import asyncio
import faulthandler
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prometheus_client import REGISTRY

from gateway.fleet.merged_metrics import take_snapshot
from gateway.fleet.messages import Lines

logger = logging.getLogger(__name__)

BEAT_SECONDS: Final = 1.0
"""How often a worker sends a heartbeat."""

DUMP_SIGNAL: Final = signal.SIGUSR2
"""Makes a worker write the stacks of all threads to standard error, whatever they are doing."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the supervisor tells a worker before anything else."""

    slot: int
    slots: int
    folder: Path
    """Where the workers' Unix sockets are."""
    generation: int
    """Goes up with each worker of a slot."""
    listener: int
    """The descriptor of the shared listening socket."""
    peer_listener: int | None = None
    """The descriptor of the socket where other nodes connect; None if there is only one machine."""

    @property
    def socket_path(self) -> Path:
        """Where this worker listens for what others relay to it."""
        return self.folder / f"{self.slot}.{self.generation}.sock"

    def as_message(self) -> dict[str, Any]:
        """This assignment as a message."""
        return {
            "slot": self.slot,
            "slots": self.slots,
            "folder": str(self.folder),
            "generation": self.generation,
            "listener": self.listener,
            "peer_listener": self.peer_listener,
        }

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> "Assignment":
        """What a message says."""
        return cls(**{**message, "folder": Path(message["folder"])})


class WorkerLink:
    """A worker's conversation with its supervisor. Used on the worker's loop, once that runs."""

    def __init__(self, descriptor: int) -> None:
        """Wait for the assignment. `descriptor`: this worker's end of the socket pair.

        Raises:
            SystemExit: the supervisor has gone.
        """
        self._lines = Lines(socket.socket(fileno=descriptor))
        messages = self._lines.receive()
        if not messages:
            raise SystemExit(1)
        self.assignment = Assignment.from_message(messages[0])
        self.on_leave: Callable[[], object] = lambda: None
        """Called when all workers of this node are told to stop, before this one is."""
        faulthandler.register(DUMP_SIGNAL, all_threads=True)

    def start(self) -> None:
        """Tell the supervisor that the worker is ready, then send heartbeats."""
        self._lines.socket.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._lines.socket, self._receive)
        self._send({"ready": os.getpid()})
        self._beat()

    def _beat(self) -> None:
        self._send({"beat": True})
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)

    def _receive(self) -> None:
        messages = self._lines.receive()
        if messages is None:
            logger.error("The supervisor has gone; this worker stops")
            asyncio.get_running_loop().remove_reader(self._lines.socket)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        for message in messages:
            if "leave" in message:
                self.on_leave()
            elif "metrics" in message:
                self._send({"metrics": take_snapshot(REGISTRY), "request": message["metrics"]})

    def _send(self, message: dict[str, Any]) -> None:
        self._lines.socket.setblocking(True)
        self._lines.socket.settimeout(5)
        self._lines.send(message)
        self._lines.socket.setblocking(False)
