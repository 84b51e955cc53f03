"""Lanes: a thread with an event loop for each server, so that a server that blocks its loop stops only itself.

Lives here: the threads, and how work gets there from another loop. What runs in them: `running_server`.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, Final, TypeVar, TypeVarTuple

try:
    import uvloop
except ImportError:  # it does not exist for Windows
    uvloop = None  # type: ignore[assignment]

from gateway.wakeups import Wakeups

logger = logging.getLogger(__name__)

STOP_TIMEOUT_SECONDS: Final = 2.0
"""How long a lane may take to stop. One that is blocked is left running: its thread does not keep the process alive."""

JOIN_SECONDS: Final = 0.05
"""How much longer the host waits for the threads that stop lanes, so that they can log what happened."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class Lane:
    """An event loop in a thread of its own. Every method may be called from any thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        # Every message goes from the host's loop to a lane and back. uvloop halves the cost of that.
        self.loop = uvloop.new_event_loop() if uvloop is not None else asyncio.new_event_loop()
        self.wakeups = Wakeups(self.loop)
        """For what is called once for each message."""
        self._is_stopping = False
        self._probe_sent: float | None = None
        self._last_lag_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name=f"lane-{name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._is_stopping:
            try:
                self.loop.run_forever()
            # asyncio lets a task's SystemExit or KeyboardInterrupt out of the loop. It ends the task, not the lane.
            except BaseException:
                logger.exception("A task of %s raised out of its event loop", self.name)
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def post(self, callback: Callable[[*_Ts], object], *args: *_Ts) -> bool:
        """Call `callback(*args)` in the lane soon. Returns False if the lane has stopped, and calls nothing then."""
        try:
            self.loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def submit(self, coroutine: Coroutine[Any, Any, _T]) -> "Future[_T]":
        """Start `coroutine` in the lane. To cancel it, cancel the future.

        Raises:
            RuntimeError: the lane has stopped.
        """
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise

    async def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run `coroutine` in the lane and return its result. If the caller is cancelled, so is the coroutine."""
        return await asyncio.wrap_future(self.submit(coroutine))

    def probe(self) -> None:
        """Measure the lag: how long a callback waits until the loop runs it. Call it regularly."""
        if self._probe_sent is None:
            self._probe_sent = time.monotonic()
            self.post(self._answer_probe, self._probe_sent)

    def _answer_probe(self, sent: float) -> None:
        self._last_lag_seconds = time.monotonic() - sent
        self._probe_sent = None

    @property
    def blocked_seconds(self) -> float:
        """For how long the loop has not answered a probe; 0 while it answers."""
        sent = self._probe_sent
        return time.monotonic() - sent if sent is not None else 0.0

    @property
    def lag_seconds(self) -> float:
        """The last measured lag, or for how long the present probe has been unanswered if that is longer."""
        return max(self._last_lag_seconds, self.blocked_seconds)

    def stop(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> bool:
        """Cancel what runs in the lane and end its thread. Returns False if it is blocked and was left running."""
        if self._thread.is_alive():
            self.post(lambda: self.loop.create_task(self._wind_down()))
            self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            logger.warning("The lane of %s is blocked and was left running", self.name)
            return False
        return True

    async def _wind_down(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=STOP_TIMEOUT_SECONDS / 2)
            for task in stubborn:
                logger.warning("A task of %s did not end when it was cancelled", self.name)
                # It ends with the loop, on purpose. Without this line asyncio would log it as an error.
                task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._is_stopping = True
        self.loop.stop()


class Lanes:
    """The lanes of a host, by server name. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Lane:
        """The lane of server `name`. It starts with the first call."""
        with self._lock:
            lane = self._lanes.get(name)
            if lane is None:
                lane = self._lanes[name] = Lane(name)
            return lane

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes.values()))

    def stop(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """Stop all lanes at the same time, in about `timeout_seconds` together."""
        with self._lock:
            lanes, self._lanes = list(self._lanes.values()), {}
        deadline = time.monotonic() + timeout_seconds + JOIN_SECONDS
        stoppers = [threading.Thread(target=lane.stop, args=(timeout_seconds,), daemon=True) for lane in lanes]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join(max(0.0, deadline - time.monotonic()))
