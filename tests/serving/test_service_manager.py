"""What systemd is told. With real hosts: tests/fleet/test_starting.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.serving.service_manager import ServiceManager
from tests.support.deadlines import WAIT_SECONDS
from tests.support.processes import until
from tests.support.service_manager import Told


@pytest.fixture
def told() -> Iterator[Told]:
    with Told() as told:
        yield told


def test_variables_are_taken_from_the_environment_so_that_children_lack_them(told: Told) -> None:
    environ = {"NOTIFY_SOCKET": told.address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    manager = ServiceManager.take_from(environ)
    assert environ == {"A": "b"}
    manager.report_ready()
    manager.report_alive()
    manager.report_stopping()
    until(lambda: told.messages == ["READY=1", "WATCHDOG=1", "STOPPING=1"])


@pytest.mark.parametrize("variables", [{}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}])
def test_without_a_watchdog_of_this_process_no_sign_of_life_is_sent(told: Told, variables: dict[str, str]) -> None:
    manager = ServiceManager.take_from({"NOTIFY_SOCKET": told.address, **variables})
    manager.report_alive()
    manager.report_stopping()
    until(lambda: told.messages == ["STOPPING=1"])


def test_signs_of_life_are_sent_when_they_are_due_and_not_more_often(told: Told) -> None:
    manager = ServiceManager(told.address, watchdog_seconds=3600)
    manager.report_alive()
    manager.report_alive()
    manager.report_stopping()
    until(lambda: told.messages == ["WATCHDOG=1", "STOPPING=1"])


async def test_running_loop_gives_signs_of_life(told: Told) -> None:
    ServiceManager(told.address, watchdog_seconds=0.03).watch_loop()
    await asyncio.to_thread(until, lambda: told.messages.count("WATCHDOG=1") > 2)


def test_socket_with_a_path_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "s"))
        ServiceManager(str(tmp_path / "s")).report_ready()
        assert listening.recv(100) == b"READY=1"


def test_service_manager_that_does_not_read_is_told_when_it_does_and_needs_no_further_signs_of_life(
    tmp_path: Path,
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.settimeout(WAIT_SECONDS)
        manager = ServiceManager(str(tmp_path / "s"), watchdog_seconds=1e-9)
        for _ in range(1000):
            manager.report_alive()
        reader = threading.Timer(0.05, lambda: [listening.recv(100) for _ in range(5)])
        reader.start()
        manager.report_stopping()
        reader.join()
        listening.setblocking(False)
        received = []
        with contextlib.suppress(BlockingIOError):
            while True:
                received.append(listening.recv(100))
        assert received[-1] == b"STOPPING=1"


def test_service_manager_that_has_gone_costs_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager(str(tmp_path / "gone"))
    with caplog.at_level(logging.WARNING):
        manager.report_ready()
        manager.report_stopping()
    assert [record.getMessage() for record in caplog.records] == [
        "The service manager cannot be told READY=1: [Errno 2] No such file or directory"
    ]


def test_without_a_service_manager_nothing_is_sent_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager.take_from({}).report_ready()
    assert caplog.records == []
