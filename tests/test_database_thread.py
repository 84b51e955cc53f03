"""The loop of the background threads, with work that uses no database."""

import logging
import threading
from collections.abc import Callable

import pytest

from gateway.database_thread import DatabaseThread, Outage

BOUND_SECONDS = 10


class Rounds:
    """Work that counts its rounds; `work` fails while `error` is set."""

    def __init__(self) -> None:
        self.rounds: list[bool] = []
        self.errors: list[Exception] = []
        self.error: Exception | None = None
        self.has_run = threading.Event()

    def work(self, is_last: bool) -> None:
        self.rounds.append(is_last)
        self.has_run.set()
        if self.error is not None:
            raise self.error

    def thread(self, interval_seconds: float) -> DatabaseThread:
        return DatabaseThread("rounds", self.work, self.errors.append, interval_seconds=interval_seconds)

    def wait_for_round(self, after: Callable[[], object]) -> None:
        self.has_run.clear()
        after()
        assert self.has_run.wait(BOUND_SECONDS)


def test_work_is_repeated_when_woken_and_once_more_at_the_stop() -> None:
    rounds = Rounds()
    thread = rounds.thread(interval_seconds=1000)
    rounds.wait_for_round(thread.start)
    rounds.wait_for_round(thread.wake)
    thread.stop()
    assert rounds.rounds == [False, False, True]
    thread.stop()
    assert len(rounds.rounds) == 3


def test_error_is_passed_on_and_the_thread_goes_on() -> None:
    rounds = Rounds()
    rounds.error = ValueError("broken")
    thread = rounds.thread(interval_seconds=0.001)
    thread.start()
    rounds.wait_for_round(lambda: None)
    rounds.wait_for_round(lambda: None)
    thread.stop()
    assert rounds.rounds[-1]
    assert set(rounds.errors) == {rounds.error}


def test_outage_is_logged_once_when_it_begins_and_once_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outage = Outage(logging.getLogger(__name__), "Away", "Back")
    outage.end()
    assert [outage.begin(ValueError("secret text")) for _ in range(3)] == [True, False, False]
    outage.end()
    outage.end()
    assert caplog.messages == ["Away: ValueError", "Back"]
