"""Which workers a supervisor starts, and when. Its workers are tiny programs here."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.fleet import supervisor as supervisor_module
from gateway.fleet.supervisor import Supervisor
from tests.support.deadlines import WAIT_SECONDS

WORKER = """
import json, os, pathlib, socket, sys
lines = socket.socket(fileno=int(sys.argv[1]))
slot = json.loads(lines.recv(4096))["slot"]
folder = pathlib.Path(sys.argv[2])
with (folder / "started").open("a") as started:
    started.write(f"{slot}\\n")
if (folder / "deadly").exists():
    os._exit(7)
lines.send(json.dumps({"ready": os.getpid()}).encode() + b"\\n")
lines.recv(1)
"""


class Fleet:
    """A supervisor of three workers, one step at a time."""

    def __init__(self, folder: Path, listener: socket.socket) -> None:
        self._folder = folder
        self.deadly = folder / "deadly"
        self.supervisor = Supervisor(listener, 3, self._command, folder=folder, grace_seconds=1)

    def _command(self, descriptor: int) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", WORKER, str(descriptor), str(self._folder)]

    def started(self) -> list[int]:
        """The slots of all workers that have been started."""
        return [int(line) for line in (self._folder / "started").read_text().split()]

    def ready(self) -> int:
        return sum(worker["ready"] for worker in self.supervisor.status())

    def run_until(self, condition: Callable[[], bool]) -> None:
        ends_at = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < ends_at
            self.supervisor._look()
            for key, _ in self.supervisor._selector.select(0.01):
                self.supervisor._hear(key.data)

    def kill(self) -> None:
        for worker in list(self.supervisor._workers.values()):
            worker.process.kill()
            worker.process.wait()
            worker.lines.socket.close()
        self.supervisor._selector.close()


@pytest.fixture
def fleet(processes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setattr(supervisor_module, "LONGEST_DELAY_SECONDS", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Fleet(tmp_path, listener)
        yield made
        made.kill()


def test_when_workers_do_not_start_any_more_one_tries_for_all_and_then_all_come_back(fleet: Fleet) -> None:
    fleet.run_until(lambda: fleet.ready() == 3)
    fleet.deadly.touch()
    for worker in list(fleet.supervisor._workers.values()):
        worker.process.kill()
    # Each slot finds out for itself that its workers do not start.
    first, *others = fleet.supervisor._slots
    fleet.run_until(lambda: first.is_failing and all(slot.is_failing and slot.worker is None for slot in others))
    tried = len(fleet.started())
    fleet.run_until(lambda: len(fleet.started()) >= tried + 5)
    assert set(fleet.started()[tried:]) == {0}
    fleet.deadly.unlink()
    fleet.run_until(lambda: fleet.ready() == 3)


def test_workers_that_have_never_started_are_all_tried(fleet: Fleet) -> None:
    fleet.deadly.touch()
    fleet.run_until(lambda: fleet.supervisor._is_hopeless)
    assert min(fleet.started().count(slot) for slot in range(3)) >= 3
