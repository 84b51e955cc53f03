"""How often a key or an address may do what: in memory, in a file for the processes of one machine, or in Redis.

Lives here: the rules, counting, and who was refused by which rule. Not here: what is answered (`authenticator`,
`tool_scope`, `login_throttle`), the windows in memory (`rate_windows`).

Windows are fixed: they begin with the first request. In memory a subject gets the whole limit when its window begins.
With a shared storage a round trip for each request would cost too much, so a process draws an allowance from the
storage, a fiftieth of the limit at a time, and counts that down by itself. Small limits are exact; of larger ones a
process wastes at most one allowance in a window. It draws once at a time for a key or an address, and all requests that
wait share what was drawn. While a storage fails, or does not answer at once, each process counts for itself. A thread
looks now and then whether the storage is back; no request waits for it meanwhile.
"""

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from limits import RateLimitItem, parse
from limits.storage import Storage, storage_from_string

from gateway.access import shared_counts
from gateway.access.rate_windows import Allowance, Windows
from gateway.conf import Rule
from gateway.conf.redis import redis_options
from gateway.http.addresses import counted_address, counted_site

logger = logging.getLogger(__name__)

ALLOWANCES: Final = 50
"""In how many parts a limit is drawn from a shared storage."""

MAX_REFUSED_SUBJECTS: Final = 1000
"""How many keys and addresses are told apart until they are written down; the rest count as `OTHERS`."""

SITE_FACTOR: Final = 4
"""How many times the limit of one IPv6 /64 network its /48 network has, where both are counted."""

OTHERS: Final = "(others)"

IN_MEMORY: Final = "memory://"

ANSWER_SECONDS: Final = 0.25
"""How long a request waits for the shared storage, which usually answers within a millisecond."""

AWAY_SECONDS: Final = 5.0
"""How often a thread looks whether a storage that has failed is back."""

_Key = tuple[Rule, str]
"""A rule and whom it counts."""


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
            ValueError: a limit is malformed.
        """
        self._items: dict[Rule, RateLimitItem] = {name: parse(text) for name, text in rules.items() if text}
        self._shared = _storage(storage_url) if storage_url != IN_MEMORY else None
        # Redis may answer late: it is not asked on an event loop.
        self._executor = ThreadPoolExecutor(2, "limits") if self._shared is not None else None
        self._look_again_at = 0.0
        """When to look whether the shared storage, which has failed, is back (monotonic seconds); 0 if it works."""
        self._windows: defaultdict[Rule, Windows] = defaultdict(Windows)
        self._own_windows: defaultdict[Rule, Windows] = defaultdict(Windows)
        """What this process has not drawn yet while the shared storage is away."""
        self._draws: dict[_Key, Future[Allowance]] = {}
        """What is being drawn from the shared storage."""
        self._refusals: dict[_Key, Refusals] = {}
        self._lock = threading.Lock()

    async def spend(self, rule: Rule, subject: str, *, factor: int = 1) -> int | None:
        """Count one request. Returns None if it was within the limit, otherwise the seconds until the next window.

        `factor`: how many times the rule's limit this subject has.
        """
        item = self._items.get(rule)
        if item is None:
            return None
        if factor != 1:
            item = type(item)(item.amount * factor, item.multiples, item.namespace)
        key = (rule, subject)
        drawn: Allowance | None = None
        while True:
            with self._lock:
                # A new draw may be used even if its window ended on the way.
                allowance = self._windows[rule].current(subject) or drawn
                if allowance is not None and allowance.left > 0:
                    allowance.left -= 1
                    return None
                if allowance is not None and allowance.is_last:
                    break
                draw = self._start_draw(item, key)
                if draw is None:
                    drawn = self._add(item, key, self._draw_alone(item, key))
                    continue
            if not await _is_done_in_time(draw):
                self._note_away("no answer in time")
            drawn = draw.result() if draw.done() and not draw.cancelled() else None
        return self._refuse(key, allowance, time.time())

    def spend_at_once(self, rule: Rule, subject: str) -> bool:
        """Count one request if nothing has to be drawn for it. Returns False if nothing was counted: then use `spend`.

        Most requests take this way, which costs no coroutine.
        """
        if rule not in self._items:
            return True
        with self._lock:
            allowance = self._windows[rule].current(subject)
            if allowance is None or allowance.left <= 0:
                return False
            allowance.left -= 1
        return True

    async def spend_for_address(self, rule: Rule, address: str) -> int | None:
        """Count one request of a client's address, and of the site that an IPv6 address belongs to.

        Returns what `spend` returns. A request that the address may not make does not count for its site, so that one
        network cannot use up the limit of all.
        """
        seconds = await self.spend(rule, counted_address(address))
        site = counted_site(address)
        if seconds is not None or site is None:
            return seconds
        return await self.spend(rule, site, factor=SITE_FACTOR)

    def give_back(self, rule: Rule, subject: str) -> None:
        """Take back one that was counted in this window. It is given back to this process only."""
        with self._lock:
            allowance = self._windows[rule].current(subject)
            if allowance is not None:
                allowance.left += 1

    def give_back_for_address(self, rule: Rule, address: str) -> None:
        """Take back what `spend_for_address` has counted."""
        self.give_back(rule, counted_address(address))
        site = counted_site(address)
        if site is not None:
            self.give_back(rule, site)

    def is_spent(self, rule: Rule, subject: str) -> int | None:
        """The seconds until the next window if the limit was reached before, as far as this process knows."""
        with self._lock:
            allowance = self._windows[rule].current(subject)
        if allowance is None or not allowance.is_last or allowance.left > 0:
            return None
        return self._refuse((rule, subject), allowance, time.time())

    def is_spent_for_address(self, rule: Rule, address: str) -> int | None:
        """The same for a client's address and its site."""
        seconds = self.is_spent(rule, counted_address(address))
        site = counted_site(address)
        return self.is_spent(rule, site) if seconds is None and site is not None else seconds

    def note_refusal(self, rule: Rule, subject: str) -> None:
        """Remember that `subject` was refused by `rule`, for operators."""
        now = time.time()
        with self._lock:
            self._note((rule, subject), Refusals(1, now, now))

    def take_refusals(self) -> dict[_Key, Refusals]:
        """Who was refused by which rule since the last call."""
        with self._lock:
            taken, self._refusals = self._refusals, {}
        return taken

    def put_back(self, refusals: Mapping[_Key, Refusals]) -> None:
        """Remember again what was taken and could not be written."""
        with self._lock:
            for key, refused in refusals.items():
                self._note(key, refused)

    def close(self) -> None:
        """Let the threads end."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            with self._lock:
                self._draws.clear()

    # -- With the lock held ------------------------------------------------------------------------------------------

    def _note(self, key: _Key, refused: Refusals) -> None:
        if key not in self._refusals and len(self._refusals) >= MAX_REFUSED_SUBJECTS:
            key = (key[0], OTHERS)
        known = self._refusals.setdefault(key, Refusals(0, refused.first_at, refused.last_at))
        known.count += refused.count
        known.first_at = min(known.first_at, refused.first_at)
        known.last_at = max(known.last_at, refused.last_at)

    def _start_draw(self, item: RateLimitItem, key: _Key) -> Future[Allowance] | None:
        """Let a thread draw from the shared storage, unless one does; None if this process counts for itself."""
        if self._shared is None or self._executor is None:
            return None
        if self._look_again_at:
            self._look_again(self._executor, self._shared)
            return None
        if key in self._draws:
            return self._draws[key]
        try:
            draw = self._draws[key] = self._executor.submit(self._draw_shared, self._shared, item, key)
        except RuntimeError:  # closed
            return None
        return draw

    def _look_again(self, executor: ThreadPoolExecutor, shared: Storage) -> None:
        """Let a thread look whether the shared storage is back, if it is time for that."""
        now = time.monotonic()
        if now >= self._look_again_at:
            self._look_again_at = now + AWAY_SECONDS
            with suppress(RuntimeError):  # closed
                executor.submit(self._note_if_back, shared)

    def _draw_alone(self, item: RateLimitItem, key: _Key) -> Allowance:
        """Draw from what this process counts for itself: everything, or a part while the shared storage is away."""
        whole = Allowance(item.amount, time.time() + item.get_expiry(), is_last=True)
        if self._shared is None:
            return whole
        rule, subject = key
        own = self._own_windows[rule].current(subject)
        if own is None:
            own = whole
            self._own_windows[rule].begin(subject, own)
        drawn = min(_part(item), own.left)
        own.left -= drawn
        return Allowance(drawn, own.until, is_last=own.left == 0)

    def _add(self, item: RateLimitItem, key: _Key, drawn: Allowance) -> Allowance:
        rule, subject = key
        known = self._windows[rule].last(subject)
        # Of the same window. Not compared by the clock: Redis gives a window's end in whole seconds.
        if known is not None and drawn.until < known.until + item.get_expiry() / 2:
            known.left += drawn.left
            known.until, known.is_last = drawn.until, drawn.is_last
            return known
        self._windows[rule].begin(subject, drawn)
        return drawn

    # -- Without the lock --------------------------------------------------------------------------------------------

    def _draw_shared(self, shared: Storage, item: RateLimitItem, key: _Key) -> Allowance:
        drawn: Allowance | None = None
        try:
            # If the storage failed while this draw waited for its turn, do not wait for the storage as well.
            if not self._look_again_at:
                drawn = _draw_from(shared, item, key)
        # An error of the storage, of whatever type its driver has: this process goes on counting for itself.
        except Exception as error:
            self._note_away(type(error).__name__)
        with self._lock:
            self._draws.pop(key, None)
            return self._add(item, key, drawn or self._draw_alone(item, key))

    def _note_away(self, failure: str) -> None:
        with self._lock:
            was_away = self._look_again_at > 0
            self._look_again_at = time.monotonic() + AWAY_SECONDS
        if not was_away:
            logger.warning("Limits are counted by each process for itself: %s", failure)

    def _note_if_back(self, shared: Storage) -> None:
        if shared.check():
            with self._lock:
                self._look_again_at = 0.0
            logger.info("Limits are shared again")

    def _refuse(self, key: _Key, allowance: Allowance, now: float) -> int:
        self.note_refusal(*key)
        return max(1, round(allowance.until - now + 0.5))


async def _is_done_in_time(draw: Future[Allowance]) -> bool:
    # Not awaited itself: a caller who leaves must not cancel what the others wait for.
    loop, is_done = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: Future[Allowance]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits in it any more
            loop.call_soon_threadsafe(is_done.set)

    draw.add_done_callback(tell)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await is_done.wait()
    except TimeoutError:
        return draw.done()
    return True


def _storage(url: str) -> Storage:
    scheme = url.partition("://")[0]
    if scheme == shared_counts.SCHEME:
        return shared_counts.FileStorage(url)
    is_redis = scheme in ("redis", "rediss", "redis+unix")
    storage = storage_from_string(url, **(redis_options(is_async=False) if is_redis else {}))
    assert isinstance(storage, Storage)
    return storage


def _draw_from(storage: Storage, item: RateLimitItem, key: _Key) -> Allowance:
    wanted, name = _part(item), item.key_for(*key)
    # Counted first and looked at afterwards, so that no two processes draw the same part.
    count = storage.incr(name, item.get_expiry(), amount=wanted)
    drawn = max(0, wanted - max(0, count - item.amount))
    return Allowance(drawn, storage.get_expiry(name), is_last=count >= item.amount)


def _part(item: RateLimitItem) -> int:
    """How much is drawn at once."""
    return max(1, item.amount // ALLOWANCES)
