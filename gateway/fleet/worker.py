"""A worker's side of a fleet: what it is told, what it answers, and who owns which caller.

A worker has a slot, which its successor inherits. It serves the listening socket that all workers share, and a Unix
socket of its own for what others relay to it.
"""

import asyncio
import faulthandler
import logging
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prometheus_client import REGISTRY

from gateway.fleet.merged_metrics import take_snapshot
from gateway.fleet.messages import Lines
from gateway.fleet.ring import Ring

logger = logging.getLogger(__name__)

BEAT_SECONDS: Final = 1.0
"""How often a worker tells that its loop runs."""

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

    @property
    def socket_path(self) -> Path:
        """Where this worker listens for what others relay to it."""
        return self.folder / f"{self.slot}.{self.generation}.sock"

    def as_message(self) -> dict[str, Any]:
        """The message that says so."""
        return {
            "slot": self.slot,
            "slots": self.slots,
            "folder": str(self.folder),
            "generation": self.generation,
            "listener": self.listener,
        }

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> "Assignment":
        """What a message says."""
        return cls(
            message["slot"], message["slots"], Path(message["folder"]), message["generation"], message["listener"]
        )


def slot_path(folder: Path, slot: int) -> Path:
    """Where the worker that has a slot now is reached: a link to its socket, which its successor replaces."""
    return folder / f"{slot}.sock"


class Ownership:
    """Which slot owns a key, as one worker sees it."""

    def __init__(self, assignment: Assignment) -> None:
        self._slot = assignment.slot
        self._paths = {str(slot): str(slot_path(assignment.folder, slot)) for slot in range(assignment.slots)}
        self._ring = Ring(list(self._paths))
        self.has_left = False
        """Whether this worker drains: its slot belongs to its successor."""

    def find(self, key: bytes) -> str | None:
        """The socket of the owner of a key; None if that is this worker."""
        owner = self._ring.owner(key)
        return None if owner == str(self._slot) and not self.has_left else self._paths[owner]


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
        faulthandler.register(DUMP_SIGNAL, all_threads=True)

    def start(self) -> None:
        """Tell that the worker is ready, and go on telling that it runs."""
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
            if "metrics" in message:
                self._send({"metrics": take_snapshot(REGISTRY), "request": message["metrics"]})

    def _send(self, message: dict[str, Any]) -> None:
        self._lines.socket.setblocking(True)
        self._lines.socket.settimeout(5)
        self._lines.send(message)
        self._lines.socket.setblocking(False)
