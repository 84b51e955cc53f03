"""Fixed windows in memory: what each key or address may still do until its window ends.

A window begins with the first request. Every operation takes constant time, however many subjects there are.
"""

import time
from dataclasses import dataclass
from typing import Final

MAX_SUBJECTS: Final = 50_000
"""How many keys or addresses one limit keeps windows of; beyond it the oldest window is forgotten."""

FORGOTTEN_AT_ONCE: Final = 2
"""How many windows that have ended are forgotten for each one that begins: more than one, so that none accumulate."""


@dataclass(slots=True)
class Allowance:
    """What one subject may still do in its window."""

    left: int
    until: float
    """When the window ends (seconds since the epoch)."""
    is_last: bool
    """Whether there is no more to draw in this window."""


class Windows:
    """The windows of one limit, by subject, in the order in which they began. Not thread-safe."""

    def __init__(self) -> None:
        self._by_subject: dict[str, Allowance] = {}

    def __len__(self) -> int:
        return len(self._by_subject)

    def current(self, subject: str) -> Allowance | None:
        """What the subject has left; None if it has no window or its window has ended."""
        allowance = self._by_subject.get(subject)
        return allowance if allowance is not None and time.time() < allowance.until else None

    def last(self, subject: str) -> Allowance | None:
        """The subject's last window, whether or not it has ended."""
        return self._by_subject.get(subject)

    def begin(self, subject: str, allowance: Allowance) -> None:
        """Begin a window."""
        # Windows of one limit are equally long, so the first one in the dictionary is the first to end.
        self._by_subject.pop(subject, None)
        now = time.time()
        for _ in range(FORGOTTEN_AT_ONCE):
            oldest = next(iter(self._by_subject), None)
            if oldest is None or (self._by_subject[oldest].until > now and len(self._by_subject) < MAX_SUBJECTS):
                break
            del self._by_subject[oldest]
        self._by_subject[subject] = allowance
