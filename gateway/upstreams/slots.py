"""How many child processes and remote connections there may be at once.

The last quarter is for users who have few: one user with many sessions, each with a process of its own, must not take
all.
"""

import threading
from collections import Counter
from functools import cache
from typing import Final

from gateway.conf import conf
from gateway.exceptions import InstanceUnavailable

SHARE: Final = 0.25
"""The part of the places that only users with less than such a part get."""


class Slots:
    """How many child processes there are in this process, and how many there may be. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.used = 0
        self._by_user: Counter[str] = Counter()

    def take(self, user_id: str) -> None:
        """Take a place for a user.

        Raises:
            InstanceUnavailable: none is left, or the last ones are for others.
        """
        limit = conf.max_children
        with self._lock:
            if self.used >= limit:
                raise InstanceUnavailable("This host runs as many child processes as it may. Try again later.")
            if self.used >= limit * (1 - SHARE) and self._by_user[user_id] >= max(1, limit * SHARE):
                raise InstanceUnavailable(
                    "This host runs nearly as many child processes as it may, and many of them are yours. "
                    "Close sessions, or try again later."
                )
            self.used += 1
            self._by_user[user_id] += 1

    def give_back(self, user_id: str) -> None:
        """Give a place back."""
        with self._lock:
            self.used -= 1
            self._by_user[user_id] -= 1
            if not self._by_user[user_id]:
                del self._by_user[user_id]


@cache
def slots_of_this_process() -> Slots:
    """The places that all servers of this process share, those that are loaded later included."""
    return Slots()
