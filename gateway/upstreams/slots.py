"""How many child processes and remote connections there may be at once."""

import threading
from functools import cache

from gateway.conf import conf
from gateway.exceptions import InstanceUnavailable


class Slots:
    """How many child processes there are in this process, and how many there may be. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.used = 0

    def take(self) -> None:
        """Take a place.

        Raises:
            InstanceUnavailable: none is left.
        """
        with self._lock:
            if self.used >= conf.max_children:
                raise InstanceUnavailable("This host runs as many child processes as it may. Try again later.")
            self.used += 1

    def give_back(self) -> None:
        """Give a place back."""
        with self._lock:
            self.used -= 1


@cache
def slots_of_this_process() -> Slots:
    """The places that all servers of this process share, those that are loaded later included."""
    return Slots()
