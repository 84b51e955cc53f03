"""How often a key or an address may do what, on the `limits` package: in memory, or in Redis for several processes.

Lives here: the rules, counting, and who ran into which rule. Not here: what is answered (`authenticator` at the door,
`tool_scope` for calls).

Counting costs 10 µs in memory and a round trip in Redis, for a request that is served in 250 µs. So a process draws an
allowance from the storage, a fiftieth of the limit at a time, and counts that down by itself. Small limits are exact;
of larger ones a process wastes at most one allowance a window. It draws once at a time for a key or an address, and all
that wait share what was drawn. A storage that fails, or does not answer at once, is left alone for a while, in which
each process counts for itself. Windows are fixed: they begin with the first request.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import FixedWindowRateLimiter

from gateway.conf import Rule

logger = logging.getLogger(__name__)

ALLOWANCES: Final = 50
"""In how many parts a limit is drawn."""

MAX_REFUSED_SUBJECTS: Final = 1000
"""How many keys and addresses are told apart until they are written down; the rest count as `OTHERS`."""

MAX_ALLOWANCES: Final = 50_000
"""How many keys and addresses are counted at once before old windows are looked for."""

SITE_FACTOR: Final = 4
"""How many times the limit of one IPv6 /64 network its /48 network has, where both are counted."""

OTHERS: Final = "(others)"

IN_MEMORY: Final = "memory://"

ANSWER_SECONDS: Final = 1.0
"""How long a request waits for the shared storage. Drivers have patience of their own, of seconds or none."""

AWAY_SECONDS: Final = 5.0
"""How long it is not asked again after it has failed."""


@dataclass(slots=True)
class _Allowance:
    left: int
    until: float
    """Seconds since the epoch at which the window ends."""
    is_last: bool
    """Whether the window has no more to draw."""


@dataclass(slots=True)
class Refusals:
    """How often one rule has refused one subject."""

    count: int
    first_at: float
    last_at: float


class RateLimits:
    """The rules in force and what has been used of them. May be used from any thread and event loop."""

    def __init__(self, rules: Mapping[Rule, str], storage_url: str = IN_MEMORY) -> None:
        """`rules`: rule -> "600/minute", or "" for no limit.

        Raises:
            ValueError: a limit is not written so.
        """
        self._items: dict[Rule, RateLimitItem] = {name: parse(text) for name, text in rules.items() if text}
        self._memory = FixedWindowRateLimiter(MemoryStorage())
        self._shared = FixedWindowRateLimiter(storage_from_string(storage_url)) if storage_url != IN_MEMORY else None
        # Redis answers when it likes: not on an event loop.
        self._executor = ThreadPoolExecutor(2, "limits") if self._shared is not None else None
        self._shared_again_at = 0.0
        """Before this moment (monotonic) the shared storage is not asked: it has failed. 0 while all is well."""
        self._allowances: dict[tuple[Rule, str], _Allowance] = {}
        self._draws: dict[tuple[Rule, str], Future[_Allowance]] = {}
        """What is being drawn from the shared storage."""
        self._refusals: dict[tuple[Rule, str], Refusals] = {}
        self._lock = threading.Lock()

    async def spend(self, rule: Rule, subject: str) -> int | None:
        """Count one. None if it was within the limit, the seconds until the next chance if not."""
        item = self._items.get(rule)
        if item is None:
            return None
        key = (rule, subject)
        drawn: _Allowance | None = None
        while True:
            with self._lock:
                # What has just been drawn is good even if its window ended on the way.
                allowance = self._current(key) or drawn
                if allowance is not None and allowance.left > 0:
                    allowance.left -= 1
                    return None
                if allowance is not None and allowance.is_last:
                    break
                draw = self._start_draw(item, key)
                if draw is None:
                    drawn = self._add(item, key, _draw_from(self._memory, item, key))
                    continue
            if not await _is_done_in_time(draw):
                self._note_away("no answer in time")
            drawn = draw.result() if draw.done() and not draw.cancelled() else None
        return self._refuse(key, allowance, time.time())

    def give_back(self, rule: Rule, subject: str) -> None:
        """Have one that was spent in this window not count after all. It stays with this process."""
        with self._lock:
            allowance = self._current((rule, subject))
            if allowance is not None:
                allowance.left += 1

    def is_spent(self, rule: Rule, subject: str) -> int | None:
        """The seconds until the next chance if the limit was reached before, as far as this process knows."""
        allowance = self._allowances.get((rule, subject))
        now = time.time()
        if allowance is None or not allowance.is_last or allowance.left > 0 or now >= allowance.until:
            return None
        return self._refuse((rule, subject), allowance, now)

    def note_refusal(self, rule: Rule, subject: str) -> None:
        """Remember that `subject` was refused by `rule`, for operators."""
        now = time.time()
        with self._lock:
            self._note((rule, subject), Refusals(1, now, now))

    def take_refusals(self) -> dict[tuple[Rule, str], Refusals]:
        """Who ran into which rule since this was last called."""
        with self._lock:
            taken, self._refusals = self._refusals, {}
        return taken

    def put_back(self, refusals: Mapping[tuple[Rule, str], Refusals]) -> None:
        """Remember again what was taken and could not be written down."""
        with self._lock:
            for key, refused in refusals.items():
                self._note(key, refused)

    def close(self) -> None:
        """Let the threads go."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            with self._lock:
                self._draws.clear()

    # -- With the lock held ------------------------------------------------------------------------------------------

    def _note(self, key: tuple[Rule, str], refused: Refusals) -> None:
        if key not in self._refusals and len(self._refusals) >= MAX_REFUSED_SUBJECTS:
            key = (key[0], OTHERS)
        known = self._refusals.setdefault(key, Refusals(0, refused.first_at, refused.last_at))
        known.count += refused.count
        known.first_at = min(known.first_at, refused.first_at)
        known.last_at = max(known.last_at, refused.last_at)

    def _current(self, key: tuple[Rule, str]) -> _Allowance | None:
        allowance = self._allowances.get(key)
        return allowance if allowance is not None and time.time() < allowance.until else None

    def _start_draw(self, item: RateLimitItem, key: tuple[Rule, str]) -> Future[_Allowance] | None:
        """Have a thread draw from the shared storage, if none does; None where this process counts for itself."""
        if self._shared is None or self._executor is None or time.monotonic() < self._shared_again_at:
            return None
        if key in self._draws:
            return self._draws[key]
        try:
            draw = self._draws[key] = self._executor.submit(self._draw_shared, self._shared, item, key)
        except RuntimeError:  # closed
            return None
        return draw

    def _add(self, item: RateLimitItem, key: tuple[Rule, str], drawn: _Allowance) -> _Allowance:
        if len(self._allowances) >= MAX_ALLOWANCES:
            self._forget_old()
        known = self._allowances.get(key)
        # Of the same window. Not by the clock: Redis tells a window's end to the second.
        if known is not None and drawn.until < known.until + item.get_expiry() / 2:
            known.left += drawn.left
            known.until, known.is_last = drawn.until, drawn.is_last
            return known
        self._allowances[key] = drawn
        return drawn

    def _forget_old(self) -> None:
        now = time.time()
        for key, allowance in list(self._allowances.items()):
            if allowance.until <= now:
                del self._allowances[key]

    # -- Without it --------------------------------------------------------------------------------------------------

    def _draw_shared(self, shared: FixedWindowRateLimiter, item: RateLimitItem, key: tuple[Rule, str]) -> _Allowance:
        drawn: _Allowance | None = None
        try:
            # What waited for its turn meanwhile is spared the wait for an answer.
            if time.monotonic() >= self._shared_again_at:
                drawn = _draw_from(shared, item, key)
        # The storage's own trouble, of whatever type its driver has: this process goes on counting for itself.
        except Exception as error:
            self._note_away(type(error).__name__)
        with self._lock:
            self._draws.pop(key, None)
            is_back = drawn is not None and self._shared_again_at > 0
            if is_back:
                self._shared_again_at = 0.0
            allowance = self._add(item, key, drawn or _draw_from(self._memory, item, key))
        if is_back:
            logger.info("Limits are shared again")
        return allowance

    def _note_away(self, failure: str) -> None:
        with self._lock:
            was_away = self._shared_again_at > 0
            self._shared_again_at = time.monotonic() + AWAY_SECONDS
        if not was_away:
            logger.warning("Limits are counted by each process for itself: %s", failure)

    def _refuse(self, key: tuple[Rule, str], allowance: _Allowance, now: float) -> int:
        self.note_refusal(*key)
        return max(1, round(allowance.until - now + 0.5))


async def _is_done_in_time(draw: Future[_Allowance]) -> bool:
    # Not awaited itself: who leaves must not cancel what the others wait for.
    loop, is_done = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: Future[_Allowance]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits in it any more
            loop.call_soon_threadsafe(is_done.set)

    draw.add_done_callback(tell)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await is_done.wait()
    except TimeoutError:
        return draw.done()
    return True


def _draw_from(limiter: FixedWindowRateLimiter, item: RateLimitItem, key: tuple[Rule, str]) -> _Allowance:
    remaining = limiter.get_window_stats(item, *key).remaining
    wanted = min(max(1, item.amount // ALLOWANCES), remaining)
    is_granted = wanted > 0 and limiter.hit(item, *key, cost=wanted)
    stats = limiter.get_window_stats(item, *key)
    return _Allowance(wanted if is_granted else 0, stats.reset_time, is_last=stats.remaining <= 0 or not is_granted)
