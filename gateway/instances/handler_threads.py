"""The threads that run a server's version 1 handlers: one set for each version of its code.

Lives here: which set is current, and when an old set is closed. The threads themselves are in
`compat.handler_threads`.
"""

import threading
from collections import Counter
from collections.abc import Callable

from gateway.compat.handler_threads import HandlerThreads
from gateway.instances.policies import Policy


class ServerThreads:
    """The sets of threads of one server. Every method may be called from any thread."""

    def __init__(self, server_name: str, get_policy: Callable[[], Policy]) -> None:
        """`get_policy` returns the limits that are in force now."""
        self._server_name = server_name
        self._get_policy = get_policy
        self._lock = threading.Lock()
        self._holders: Counter[HandlerThreads] = Counter()
        """How many generations use each set. The newest set comes last, even if nothing uses it yet."""

    def hold(self) -> HandlerThreads:
        """The set for the newest code. It stays open until `release` has been called as often as `hold`."""
        with self._lock:
            if not self._holders:
                self._add_set()
            threads = next(reversed(self._holders))
            self._holders[threads] += 1
            return threads

    def release(self, threads: HandlerThreads) -> None:
        """Stop using a set. An old set is closed when its last call has returned."""
        with self._lock:
            self._holders[threads] -= 1
            self._close_unused()

    def renew(self) -> None:
        """Make a new set for generations that start from now on. Older sets stay open while they are held."""
        with self._lock:
            self._add_set()
            self._close_unused()

    @property
    def stuck(self) -> int:
        """Calls, and jobs in `asyncio.to_thread`, that were given up and have not returned."""
        return sum(threads.stuck for threads in list(self._holders))

    def keep_up(self) -> None:
        """Apply the policy, end idle threads and replace what is lost. Call it regularly."""
        with self._lock:
            self._close_unused()
        policy = self._get_policy()
        for threads in list(self._holders):
            threads.limit, threads.when_blocked = policy.max_threads, policy.when_blocked
            threads.max_computing = policy.max_computing_threads
            threads.keep_up()

    def close(self) -> None:
        """Close all sets."""
        for threads in list(self._holders):
            threads.close()

    def _add_set(self) -> None:
        policy = self._get_policy()
        threads = HandlerThreads(
            self._server_name,
            limit=policy.max_threads,
            max_computing=policy.max_computing_threads,
            when_blocked=policy.when_blocked,
        )
        self._holders[threads] = 0

    def _close_unused(self) -> None:
        for threads in list(self._holders)[:-1]:
            if self._holders[threads] <= 0:
                threads.close()
                if not threads.busy and not threads.stuck:
                    del self._holders[threads]
