"""Counts in a file: several processes of one machine have one limit together."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.access.limits import RateLimits
from gateway.access.shared_counts import FileStorage
from gateway.conf import Rule

RULE: Rule = "requests of a key"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/limits of all.sqlite3".replace(" ", "%20")


async def test_two_processes_have_one_limit_together(url: str) -> None:
    first, second = RateLimits({RULE: "10/hour"}, url), RateLimits({RULE: "10/hour"}, url)
    answers = [await limits.spend(RULE, "ada") for limits in (first, second) * 6]
    assert answers.count(None) == 10
    assert all(answers[10:])
    first.close()
    second.close()


def test_window_begins_with_the_first_count_and_is_forgotten_after_its_end(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FileStorage(url)
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    assert [storage.incr("a", 60), storage.incr("a", 60, 4), storage.get("a"), storage.get_expiry("a")] == [
        1,
        5,
        5,
        1060,
    ]
    now = 1060.0
    assert storage.get("a") == 0
    assert [storage.incr("b", 60, 2), storage.get("a"), storage.incr("a", 60, 3)] == [2, 0, 3]
    assert storage.reset() == 2


def test_no_count_is_lost_when_many_count_at_once(url: str) -> None:
    storages = [FileStorage(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: storages[number % 4].incr("a", 60), range(200)))
    assert storages[0].get("a") == 200


def test_new_file_is_made_by_many_at_once(tmp_path: Path) -> None:
    for number in range(40):
        storages = [FileStorage(f"file://{tmp_path}/{number}.sqlite3") for _ in range(8)]
        barrier = threading.Barrier(8)

        def count(storage: FileStorage, barrier: threading.Barrier = barrier) -> int:
            barrier.wait()
            return storage.incr("a", 60)

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(count, storages)) == list(range(1, 9))


def test_file_that_cannot_be_used_leaves_each_process_its_own_count(tmp_path: Path) -> None:
    assert not FileStorage(f"file://{tmp_path}/missing/limits").check()
