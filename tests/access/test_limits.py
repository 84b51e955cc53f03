import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from limits.storage import MemoryStorage

from gateway.access import rate_windows
from gateway.access.limits import OTHERS, RateLimits
from tests.support.deadlines import within
from tests.support.processes import until

RULE = "requests of a key"


async def spend(limits: RateLimits, times: int, subject: str = "ada") -> list[int | None]:
    return [await limits.spend(RULE, subject) for _ in range(times)]


@pytest.mark.parametrize("amount", [1, 5, 49, 50, 120, 1000])
async def test_exactly_the_limit_is_let_through(amount: int) -> None:
    answers = await spend(RateLimits({RULE: f"{amount}/hour"}), amount + 3)
    assert answers[:amount] == [None] * amount
    assert all(3500 < (answer or 0) <= 3601 for answer in answers[amount:])


async def test_subjects_and_rules_are_counted_apart() -> None:
    limits = RateLimits({RULE: "1/hour", "calls of a key": "1/hour"})
    assert await limits.spend(RULE, "ada") is None
    assert await limits.spend(RULE, "bob") is None
    assert await limits.spend("calls of a key", "ada") is None
    assert await limits.spend(RULE, "ada")


async def test_a_window_that_has_passed_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now)
    limits = RateLimits({RULE: "1/minute"})
    assert await limits.spend(RULE, "ada") is None
    assert await limits.spend(RULE, "ada")
    now += 61
    assert limits.is_spent(RULE, "ada") is None
    assert await limits.spend(RULE, "ada") is None


async def test_no_limit_lets_everything_through() -> None:
    limits = RateLimits({RULE: ""})
    assert await spend(limits, 1000) == [None] * 1000
    assert limits.is_spent(RULE, "ada") is None


async def test_what_is_spent_is_known_without_counting() -> None:
    limits = RateLimits({RULE: "2/hour"})
    await limits.spend(RULE, "ada")
    assert limits.is_spent(RULE, "ada") is None
    await limits.spend(RULE, "ada")
    assert limits.is_spent(RULE, "ada")
    assert limits.is_spent(RULE, "bob") is None


async def test_what_is_given_back_may_be_spent_again_in_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now)
    limits = RateLimits({RULE: "2/minute"})
    await spend(limits, 2)
    limits.give_back(RULE, "ada")
    assert limits.is_spent(RULE, "ada") is None
    assert [answer is None for answer in await spend(limits, 2)] == [True, False]
    now += 61
    limits.give_back(RULE, "ada")
    assert [answer is None for answer in await spend(limits, 3)] == [True, True, False]


async def test_refusals_are_counted_by_subject_and_bounded() -> None:
    limits = RateLimits({RULE: "1/hour"})
    await spend(limits, 4)
    for number in range(1500):
        await spend(limits, 2, f"subject-{number}")
    refusals = limits.take_refusals()
    assert refusals[RULE, "ada"].count == 3
    assert len(refusals) <= 1001
    assert sum(refused.count for refused in refusals.values()) == 1503
    assert refusals[RULE, OTHERS].count > 400
    assert limits.take_refusals() == {}


async def test_site_that_moves_through_its_networks_has_four_limits_and_no_more() -> None:
    limits = RateLimits({RULE: "2/hour"})

    async def fail(network: int, times: int) -> list[bool]:
        address = f"2001:db8:1:{network:x}::1"
        return [await limits.spend_for_address(RULE, address) is None for _ in range(times)]

    # What one network may not do does not count for its site.
    assert await fail(1, 50) == [True] * 2 + [False] * 48
    answers = [answer for network in range(2, 12) for answer in await fail(network, 1)]
    assert answers == [True] * 6 + [False] * 4
    assert limits.is_spent_for_address(RULE, "2001:db8:1:ffff::1")
    assert limits.is_spent_for_address(RULE, "2001:db8:2::1") is None
    limits.give_back_for_address(RULE, "2001:db8:1:2::1")
    assert limits.is_spent_for_address(RULE, "2001:db8:1:ffff::1") is None


async def test_new_subject_costs_the_same_however_many_there_are() -> None:
    limits = RateLimits({RULE: "30/minute"})
    for number in range(rate_windows.MAX_SUBJECTS):
        await limits.spend(RULE, f"early {number}")
    started = time.process_time()
    for number in range(2000):
        assert await limits.spend(RULE, f"late {number}") is None
    assert time.process_time() - started < 4  # 2000 looks at all of them would take 10 s or more
    assert len(limits._windows[RULE]) == rate_windows.MAX_SUBJECTS
    assert limits.is_spent(RULE, "late 1999") is None


async def test_windows_that_have_ended_are_forgotten_as_new_ones_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now)
    limits = RateLimits({RULE: "1/minute"})
    for number in range(100):
        await limits.spend(RULE, f"early {number}")
    now += 61
    for number in range(60):
        await limits.spend(RULE, f"late {number}")
    assert len(limits._windows[RULE]) == 60


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError):
        RateLimits({RULE: "many"})


class RecordingStorage(MemoryStorage):
    """Stands for Redis: what processes share, in which thread it is asked, and that it may be away."""

    STORAGE_SCHEME: ClassVar[list[str]] = ["recording"]
    shared: ClassVar[dict[str, Any]] = {}

    def __new__(cls, *arguments: Any, **options: Any) -> "RecordingStorage":
        kept: RecordingStorage = cls.shared.setdefault("storage", super().__new__(cls))
        return kept

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if "is_made" not in self.shared:
            self.shared["is_made"] = True
            super().__init__(*arguments, **options)

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        self.shared.setdefault("threads", set()).add(threading.current_thread().name)
        self.shared.setdefault("keys", []).append(key)
        if (may_answer := self.shared.get("may_answer")) is not None:
            assert may_answer.wait(10)
        if self.shared.get("is_away"):
            raise ConnectionError("away")
        self.shared.setdefault("calls", []).append(amount)
        return super().incr(key, expiry, amount)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    # On a busy machine a thread may take longer than a second to answer, which here would be a failure.
    monkeypatch.setattr("gateway.access.limits.ANSWER_SECONDS", 30)
    RecordingStorage.shared = {}
    return RecordingStorage.shared


async def test_shared_storage_is_asked_off_the_loop_and_in_lumps(shared: dict[str, Any]) -> None:
    limits = RateLimits({RULE: "1000/hour"}, "recording://")
    assert await spend(limits, 100) == [None] * 100
    assert shared["calls"] == [20] * 5
    assert all(name.startswith("limits") for name in shared["threads"])
    limits.close()


async def test_without_the_shared_storage_each_process_counts_for_itself(
    shared: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    limits = RateLimits({RULE: "5/hour"}, "recording://")
    shared["is_away"] = True
    answers = await spend(limits, 7)
    assert answers[:5] == [None] * 5
    assert all(answers[5:])
    assert caplog.text.count("counted by each process for itself") == 1
    limits.close()


async def test_shared_storage_that_does_not_answer_holds_nobody_up_for_long(
    shared: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.access.limits.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("gateway.access.limits.AWAY_SECONDS", 600)
    limits = RateLimits({RULE: "5/hour"}, "recording://")
    shared["may_answer"] = threading.Event()
    started = time.monotonic()
    answers = await asyncio.gather(*(limits.spend(RULE, f"user {number}") for number in range(20)))
    assert answers == [None] * 20
    assert time.monotonic() - started < within(1)
    asked = len(shared["keys"])
    answers = await spend(limits, 7, "user 0")
    assert (answers[:4], all(answers[4:])) == ([None] * 4, True)
    assert await spend(limits, 1, "another") == [None]
    assert len(shared["keys"]) == asked
    assert caplog.text.count("counted by each process for itself") == 1
    shared["may_answer"].set()
    limits.close()


async def test_shared_storage_that_was_away_is_asked_again_after_a_while(
    shared: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("gateway.access.limits.AWAY_SECONDS", 600)
    limits = RateLimits({RULE: "5/hour"}, "recording://")
    shared["is_away"] = True
    await limits.spend(RULE, "ada")
    shared["is_away"] = False
    await limits.spend(RULE, "bob")
    assert "calls" not in shared
    limits._look_again_at = time.monotonic()  # as if the ten minutes were over
    await limits.spend(RULE, "cleo")
    assert "calls" not in shared  # a thread looks; nobody waits for it
    await asyncio.to_thread(until, lambda: "shared again" in caplog.text)
    await limits.spend(RULE, "dora")
    assert shared["calls"] == [1]
    assert caplog.text.count("counted by each process for itself") == 1
    assert caplog.text.count("shared again") == 1
    limits.close()


def test_answer_that_comes_when_nobody_waits_any_more_hurts_nobody(
    shared: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for a login: its loop is closed by then.
    monkeypatch.setattr("gateway.access.limits.ANSWER_SECONDS", 0.05)
    limits = RateLimits({RULE: "5/hour"}, "recording://")
    shared["may_answer"] = threading.Event()
    assert asyncio.run(limits.spend(RULE, "ada")) is None
    shared["may_answer"].set()
    end = time.monotonic() + 5
    while "calls" not in shared and time.monotonic() < end:
        time.sleep(0.01)
    limits.close()
    assert shared["calls"] == [1]
    assert "exception" not in caplog.text.lower()


async def test_requests_that_come_together_share_what_is_drawn(shared: dict[str, Any]) -> None:
    limits = RateLimits({RULE: "1200/hour"}, "recording://")
    answers = await asyncio.gather(*(limits.spend(RULE, "ada") for _ in range(1500)))
    assert answers.count(None) == 1200
    assert shared["calls"] == [24] * 50
    limits.close()


async def test_who_leaves_while_a_draw_is_under_way_takes_nothing_from_the_others(shared: dict[str, Any]) -> None:
    limits = RateLimits({RULE: "100/hour"}, "recording://")
    shared["may_answer"] = threading.Event()
    comers = [asyncio.create_task(limits.spend(RULE, "ada")) for _ in range(150)]
    await asyncio.sleep(0)
    for comer in comers[:20]:
        comer.cancel()
    await asyncio.sleep(0)
    shared["may_answer"].set()
    answers = await asyncio.gather(*comers, return_exceptions=True)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[:20])
    assert answers[20:].count(None) == 100
    limits.close()


@pytest.mark.parametrize("storage_url", ["memory://", "recording://"])
def test_threads_with_loops_of_their_own_get_exactly_the_limit(shared: dict[str, Any], storage_url: str) -> None:
    limits = RateLimits({RULE: "1000/hour"}, storage_url)
    start = threading.Barrier(4)

    def spend_in_a_loop_of_its_own() -> list[int | None]:
        async def spend_at_once() -> list[int | None]:
            return await asyncio.gather(*(limits.spend(RULE, "ada") for _ in range(400)))

        start.wait(10)
        return asyncio.run(spend_at_once())

    with ThreadPoolExecutor(4) as threads:
        answers = [done.result(30) for done in [threads.submit(spend_in_a_loop_of_its_own) for _ in range(4)]]
    assert [answer for some in answers for answer in some].count(None) == 1000
    limits.close()


async def test_processes_refuse_early_by_a_fiftieth_each_at_most(shared: dict[str, Any]) -> None:
    processes = [RateLimits({RULE: "1000/hour"}, "recording://") for _ in range(3)]
    answers = await asyncio.gather(*(processes[number % 3].spend(RULE, "ada") for number in range(3000)))
    assert 1000 - 3 * 20 <= answers.count(None) <= 1000
    for limits in processes:
        limits.close()


async def test_what_is_left_is_kept_when_the_storage_rounds_the_end_of_a_window(
    shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Redis tells a window's end to the second: in its last half second it has ended already.
    monkeypatch.setattr(RecordingStorage, "get_expiry", lambda self, key: time.time())
    limits = RateLimits({RULE: "1000/hour"}, "recording://")
    answers = await spend(limits, 1001)
    assert answers[:1000] == [None] * 1000
    assert answers[1000]
    limits.close()
