"""Loads that are slow, or do not end."""

import math
import re
import signal
import threading
import time
from typing import Any

import pytest

from gateway.catalog import load_limits
from gateway.catalog.definitions import Discovery
from gateway.catalog.discovery import discover
from tests.support.server_folders import SOUND_SERVER, WriteServer


def load_failure(found: Discovery, name: str) -> Any:
    (failure,) = (failure for failure in found.failures if failure.name == name)
    return failure


FACTORY = """
    def server(user_id, api_key=None): ...
"""


# It goes on trying, as one that waits for a database.
BLOCKING = """
    import threading

    while True:
        try:
            threading.Event().wait(600)
        except Exception:
            pass
"""


def test_module_that_blocks_is_given_up_with_the_line_where_it_stands_and_stops_nothing(
    write_server: WriteServer,
) -> None:
    before = signal.getsignal(signal.SIGALRM)
    write_server("aaa")
    write_server("blocking", BLOCKING)
    directory = write_server("zzz")
    found = discover([directory], load_timeout_seconds=0.2)
    assert [definition.name for definition in found.definitions] == ["aaa", "zzz"]
    failure = load_failure(found, "blocking")
    assert failure.reason == "main.py was not loaded after 0.2 seconds: it was in main.py, line 6."
    assert "threading.Event().wait(600)" in failure.traceback
    assert signal.getsignal(signal.SIGALRM) is before


LAZY_AND_BLOCKING = """
    import threading
    from django.utils.functional import SimpleLazyObject

    client = SimpleLazyObject(lambda: threading.Event().wait(3))
""" + FACTORY  # fmt: skip


def test_module_that_blocks_when_it_is_looked_at_is_given_up(write_server: WriteServer) -> None:
    found = discover([write_server("lazy", LAZY_AND_BLOCKING)], load_timeout_seconds=0.2)
    assert load_failure(found, "lazy").reason == "main.py was not loaded after 0.2 seconds: it was in main.py, line 5."


SLOW = """
    import threading
    threading.Event().wait(0.7)
""" + SOUND_SERVER  # fmt: skip


@pytest.mark.parametrize("is_main_thread", [True, False])
def test_module_that_loads_slowly_is_named_in_the_log_meanwhile_and_served(
    write_server: WriteServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_main_thread: bool,
) -> None:
    monkeypatch.setattr(load_limits, "SLOW_LOAD_SECONDS", 0.1)
    directory = write_server("slow", SLOW)
    outcomes: list[Discovery] = []
    limit_seconds = 30 if is_main_thread else 0.1
    load = threading.Thread(target=lambda: outcomes.append(discover([directory], limit_seconds)))
    started = time.monotonic()
    if is_main_thread:
        load.run()
    else:
        load.start()
        load.join(30)
    took = time.monotonic() - started
    assert [definition.name for definition in outcomes[0].definitions] == ["slow"]
    reports = [record.getMessage() for record in caplog.records if "still being loaded" in record.getMessage()]
    # After 0.1, 0.2 and 0.4 seconds, and so on if the machine is busy.
    assert 1 <= len(reports) <= 1 + math.log2(took / 0.1)
    # On a busy machine the first may come before the module's own code runs.
    assert re.match(r"Server slow is still being loaded after \d+ s, in main\.py, line 3", reports[-1])


# It sets an alarm of its own, and handles it: the interruption of the host as well.
BLOCKING_WITH_ALARM = """
    import signal, time

    signal.signal(signal.SIGALRM, lambda *args: None)
    while True:
        time.sleep(0.01)
"""


@pytest.mark.timeout(60, method="thread")
def test_module_that_handles_the_alarm_itself_is_given_up_as_well(
    write_server: WriteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_limits, "SLOW_LOAD_SECONDS", 0.2)
    before = signal.getsignal(signal.SIGALRM)
    found = discover([write_server("blocking", BLOCKING_WITH_ALARM)], load_timeout_seconds=0.2)
    assert load_failure(found, "blocking").reason.startswith("main.py was not loaded after 0.2 seconds")
    assert signal.getsignal(signal.SIGALRM) is before
