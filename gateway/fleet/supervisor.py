"""The parent of workers: it owns the listening socket, and keeps one worker in each slot.

It executes no server's code. Workers are fresh interpreters, not forks: modules start threads when they are imported. A
worker that dies is started again at once, then with growing delays; one whose loop is silent is killed and replaced. A
rolling reload starts each slot's successor before it drains the predecessor.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gateway.fleet.merged_metrics import MergedMetrics
from gateway.fleet.messages import Lines
from gateway.fleet.ownership import handover_path, slot_path
from gateway.fleet.worker import DUMP_SIGNAL, Assignment
from gateway.serving.service_manager import ServiceManager

logger = logging.getLogger(__name__)

SILENT_SECONDS: Final = 30.0
"""How long a worker may be without a heartbeat before it is killed."""

DUMP_SECONDS: Final = 0.5
"""How long a silent worker has to write its stacks before it is killed."""

START_SECONDS: Final = 180.0
"""How long a worker may take to become ready."""

LONGEST_DELAY_SECONDS: Final = 30.0
"""The longest delay before a worker that keeps dying is started again."""

STEADY_SECONDS: Final = 60.0
"""If a worker ran this long, earlier failures are forgotten, and it is replaced at once when it dies."""

HOPELESS_STARTS: Final = 3
"""How often each slot is tried before the supervisor gives up, if no worker has ever become ready."""

SNAPSHOT_SECONDS: Final = 2.0
"""How long a scrape waits for the workers' metrics."""

REFRESH_SECONDS: Final = 5.0
"""How often metrics are asked for, so that little is lost with a worker that dies."""

FAILING_STARTS: Final = 2
"""After so many workers of a slot have ended before they were ready, a common cause is likely."""

EXIT_MARGIN_SECONDS: Final = 2.0
"""How long after the grace time workers are killed."""


@dataclass(eq=False)
class Worker:
    """One worker process."""

    assignment: Assignment
    process: "subprocess.Popen[bytes]"
    lines: Lines
    started_at: float
    is_ready: bool = False
    is_leaving: bool = False
    """Whether it was told to stop, or its successor has taken its slot."""
    last_beat: float = field(default_factory=time.monotonic)


@dataclass
class Slot:
    """A place in the ring, and who has it."""

    number: int
    worker: Worker | None = None
    successor: Worker | None = None
    generation: int = 0
    failures: int = 0
    failed_starts: int = 0
    """How many workers have ended before they were ready, since one was."""
    start_at: float = 0.0
    """When the next worker is to be started (monotonic seconds)."""

    @property
    def is_failing(self) -> bool:
        """Whether its workers do not start."""
        return self.failed_starts >= FAILING_STARTS


class Supervisor:
    """Runs workers until it is told to stop. Used in the main thread."""

    def __init__(
        self,
        listener: socket.socket,
        slots: int,
        command: Callable[[int], Sequence[str]],
        *,
        folder: Path,
        peer_listener: socket.socket | None = None,
        grace_seconds: float,
        environment: dict[str, str] | None = None,
        on_ready: Callable[[], object] = lambda: None,
        service_manager: ServiceManager | None = None,
    ) -> None:
        """`command` returns the command line of a worker, given the descriptor of its end of the socket pair.

        `folder`: for the workers' Unix sockets; only this user may read it. `peer_listener`: where other nodes connect.

        `on_ready` is called once, when all slots have a worker that serves. `service_manager`: who is told so too.
        """
        self._listener = listener
        self._peer_listener = peer_listener
        self._command = command
        self._grace_seconds = grace_seconds
        self._environment = environment
        self._on_ready = on_ready
        self._service_manager = service_manager or ServiceManager()
        self._slots = [Slot(number) for number in range(slots)]
        self._workers: dict[int, Worker] = {}
        """Process id -> worker, those that are leaving included."""
        self._folder = folder
        self._selector = selectors.DefaultSelector()
        self._were_all_ready = False
        """Whether all workers have been ready at once."""
        self._was_one_ready = False
        """Whether any worker has been ready."""
        self._is_stopping = False
        self._stop_by = float("inf")
        self._roll: list[Slot] = []
        self._next_refresh = 0.0
        self._wake: socket.socket
        self._scrape = threading.Condition()
        self._request = 0
        """Number of the newest request for metrics."""
        self._asked = 0
        self._answered = 0
        self._unanswered: set[Worker] = set()
        self.metrics = MergedMetrics(self.refresh_metrics)

    # -- Running -----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Keep the workers running. Returns the exit status."""
        wake_read, wake_write = socket.socketpair()
        wake_read.setblocking(False)
        wake_write.setblocking(False)
        self._wake = wake_write
        previous = signal.set_wakeup_fd(wake_write.fileno())
        for handled in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(handled, lambda *_: None)
        self._selector.register(wake_read, selectors.EVENT_READ)
        try:
            while True:
                self._look()
                if self._were_all_ready:
                    self._service_manager.report_alive()
                if self._is_stopping and not self._workers:
                    return 0
                if self._is_hopeless:
                    logger.error("No worker has become ready. See above for what each of them said.")
                    self._end(signal.SIGKILL)
                    return 1
                for key, _ in self._selector.select(self._seconds_to_next()):
                    if key.fileobj is wake_read:
                        for number in wake_read.recv(4096):
                            self._on_signal(number)
                    else:
                        self._hear(key.data)
        finally:
            signal.set_wakeup_fd(previous)
            for worker in list(self._workers.values()):
                worker.process.kill()
                worker.process.wait()

    def _seconds_to_next(self) -> float:
        return 0.2 if any(slot.worker is None for slot in self._slots) or self._is_stopping else 1.0

    @property
    def _is_hopeless(self) -> bool:
        return not self._was_one_ready and all(slot.failures >= HOPELESS_STARTS for slot in self._slots)

    def _on_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            if self._is_stopping:
                self._end(signal.SIGKILL)
            else:
                self._is_stopping = True
                self._stop_by = time.monotonic() + self._grace_seconds + EXIT_MARGIN_SECONDS
                logger.info("Stopping %d workers", len(self._workers))
                self._service_manager.report_stopping()
                for worker in self._workers.values():
                    worker.lines.send({"leave": True})
                self._end(signal.SIGTERM)
                # Who connects from now on is refused at once, and does not wait for workers that accept no more.
                self._listener.close()
                if self._peer_listener is not None:
                    self._peer_listener.close()
        elif number == signal.SIGHUP and not self._is_stopping:
            logger.info("Reloading %d workers, one after another", len(self._slots))
            self._service_manager.report_reloading()
            self._roll = list(self._slots)

    def _end(self, number: signal.Signals) -> None:
        for worker in self._workers.values():
            worker.is_leaving = True
            with contextlib.suppress(ProcessLookupError):
                worker.process.send_signal(number)

    # -- Looking after workers ---------------------------------------------------------------------------------------

    def _look(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers.values()):
            if worker.process.poll() is not None:
                self._note_end(worker, now)
            elif not worker.is_leaving and self._is_silent(worker, now):
                self._replace_silent(worker)
        if self._is_stopping:
            if now >= self._stop_by:
                self._end(signal.SIGKILL)
            return
        for slot in self._slots:
            if slot.worker is None and slot.successor is None and now >= slot.start_at and self._may_try(slot):
                slot.worker = self._start(slot)
        if self._roll and all(slot.worker is not None and slot.worker.is_ready for slot in self._slots):
            slot = self._roll[0]
            if slot.successor is None:
                slot.successor = self._start(slot)
        if now >= self._next_refresh or self._request > self._asked:
            self._next_refresh = now + REFRESH_SECONDS
            self._ask_for_metrics()

    def _may_try(self, slot: Slot) -> bool:
        """Whether a slot's next worker may be started now: where workers do not start any more, one tries for all."""
        if not self._was_one_ready:
            return True
        return not slot.is_failing or slot is next(other for other in self._slots if other.is_failing)

    def _is_silent(self, worker: Worker, now: float) -> bool:
        return now - worker.last_beat > (SILENT_SECONDS if worker.is_ready else START_SECONDS)

    def _replace_silent(self, worker: Worker) -> None:
        seconds = time.monotonic() - worker.last_beat
        logger.error(
            "Worker %d (process %d) has been silent for %.0f s and is killed; its stacks follow if it can write them",
            worker.assignment.slot,
            worker.process.pid,
            seconds,
        )
        worker.process.send_signal(DUMP_SIGNAL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(DUMP_SECONDS)
        worker.process.kill()
        worker.process.wait()
        self._note_end(worker, time.monotonic())

    def _start(self, slot: Slot) -> Worker:
        slot.generation += 1
        ours, theirs = socket.socketpair()
        listeners = [it.fileno() for it in (self._listener, self._peer_listener) if it is not None]
        assignment = Assignment(slot.number, len(self._slots), self._folder, slot.generation, *listeners)
        with theirs:
            process = subprocess.Popen(
                self._command(theirs.fileno()),
                pass_fds=[theirs.fileno(), *listeners],
                env=self._environment,
                stdin=subprocess.DEVNULL,
            )
        worker = Worker(assignment, process, Lines(ours), time.monotonic())
        worker.lines.send(assignment.as_message())
        ours.setblocking(False)
        self._workers[process.pid] = worker
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _note_end(self, worker: Worker, now: float) -> None:
        self._workers.pop(worker.process.pid, None)
        self._note_answers()
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(worker.lines.socket)
        worker.lines.socket.close()
        for path in (worker.assignment.socket_path, handover_path(worker.assignment.socket_path)):
            path.unlink(missing_ok=True)
        self.metrics.bury(worker.process.pid)
        if worker.is_leaving:
            return
        slot = self._slots[worker.assignment.slot]
        if slot.successor is worker:
            logger.error("The reload is given up: the new worker %d did not start", slot.number)
            slot.successor = None
            self._roll.clear()
            self._service_manager.report_ready()
            return
        slot.worker = None
        if not worker.is_ready:
            slot.failed_starts += 1
        if worker.is_ready and now - worker.started_at >= STEADY_SECONDS:
            slot.failures = 0
        delay = 0.0 if slot.failures == 0 else min(2.0 ** (slot.failures - 1), LONGEST_DELAY_SECONDS)
        slot.failures += 1
        slot.start_at = now + delay
        logger.error(
            "Worker %d (process %d) ended with status %s. It is started again %s.",
            slot.number,
            worker.process.pid,
            worker.process.returncode,
            f"in {delay:.0f} s" if delay else "at once",
        )

    def _hear(self, worker: Worker) -> None:
        messages = worker.lines.receive()
        if messages is None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(worker.lines.socket)
            return
        for message in messages:
            worker.last_beat = time.monotonic()
            if "ready" in message:
                self._take_slot(worker)
            elif "metrics" in message:
                self.metrics.update(worker.process.pid, message["metrics"])
                if message["request"] == self._asked:
                    self._unanswered.discard(worker)
                    self._note_answers()

    def _take_slot(self, worker: Worker) -> None:
        """Give a slot to a worker that is ready, and let its predecessor leave."""
        worker.is_ready = True
        self._was_one_ready = True
        assignment = worker.assignment
        path = slot_path(assignment.folder, assignment.slot)
        _point(path, assignment.socket_path)
        _point(handover_path(path), handover_path(assignment.socket_path))
        slot = self._slots[assignment.slot]
        if slot.successor is worker:
            previous, slot.worker, slot.successor = slot.worker, worker, None
            self._roll = [waiting for waiting in self._roll if waiting is not slot]
            logger.info("Worker %d is process %d now", slot.number, worker.process.pid)
            if previous is not None:
                previous.is_leaving = True
                previous.process.send_signal(signal.SIGTERM)
            if not self._roll:
                logger.info("The reload is done")
                self._service_manager.report_ready()
        slot.failed_starts = 0
        if not self._were_all_ready and all(slot.worker is not None and slot.worker.is_ready for slot in self._slots):
            self._were_all_ready = True
            self._on_ready()
            self._service_manager.report_ready()

    # -- Metrics -----------------------------------------------------------------------------------------------------

    def refresh_metrics(self) -> None:
        """Wait until all workers have sent their present metrics, for a bounded time. Called in other threads."""
        with self._scrape:
            self._request += 1
            request = self._request
            with contextlib.suppress(OSError):
                self._wake.send(b"\0")
            self._scrape.wait_for(lambda: self._answered >= request, SNAPSHOT_SECONDS)

    def _ask_for_metrics(self) -> None:
        self._asked = self._request
        self._unanswered = {
            worker
            for worker in self._workers.values()
            if worker.is_ready and worker.lines.send({"metrics": self._asked})
        }
        self._note_answers()

    def _note_answers(self) -> None:
        self._unanswered = {worker for worker in self._unanswered if worker.process.pid in self._workers}
        if not self._unanswered:
            with self._scrape:
                self._answered = max(self._answered, self._asked)
                self._scrape.notify_all()

    def status(self) -> list[dict[str, Any]]:
        """What there is: slot, process id, whether it is ready."""
        return [
            {"slot": worker.assignment.slot, "pid": worker.process.pid, "ready": worker.is_ready}
            for worker in self._workers.values()
        ]


def _point(link: Path, target: Path) -> None:
    """Let `link` lead to `target`. It is renamed into place: there is always somebody under this name."""
    draft = link.with_name(f"{link.name}.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target.name)
    os.replace(draft, link)
