"""When sessions end after the process was told to stop. With real processes: `faults/test_shutdown`."""

import asyncio
import time
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.test import override_settings

from gateway.host.drain import STOPPED, Drain
from gateway.host.serving_loop import ServingLoop


class OpenSession:
    def __init__(self, *, is_settled: bool) -> None:
        self.row_id: UUID = uuid4()
        self.is_settled = is_settled
        self.ended = asyncio.Event()
        self.end_reason = ""

    def end(self, reason: str) -> None:
        self.end_reason = reason
        self.ended.set()


class Listeners:
    """The stateless requests that listen."""

    is_listening = True

    def stop_listening(self) -> None:
        self.is_listening = False


def new_drain(sessions: list[OpenSession], listeners: Listeners | None = None) -> tuple[Drain, ServingLoop]:
    loop, no_streams = ServingLoop(), ()
    arguments: list[Any] = [loop, sessions, no_streams, listeners or Listeners()]
    return Drain(*arguments), loop


async def test_session_ends_when_it_was_settled_at_two_looks_in_turn() -> None:
    session = OpenSession(is_settled=True)
    drain, _ = new_drain([session])
    drain.end_sessions(is_late=False)
    session.is_settled = False  # its client asked once more
    drain.end_sessions(is_late=False)
    session.is_settled = True
    drain.end_sessions(is_late=False)
    assert not session.ended.is_set()
    drain.end_sessions(is_late=False)
    assert session.end_reason == STOPPED


async def test_every_session_ends_when_it_is_late() -> None:
    sessions = [OpenSession(is_settled=False), OpenSession(is_settled=True)]
    drain, _ = new_drain(sessions)
    drain.end_sessions(is_late=True)
    assert [session.end_reason for session in sessions] == [STOPPED, STOPPED]


@override_settings(GUMCP_SHUTDOWN_GRACE_SECONDS=60.0)
async def test_drain_ends_answered_sessions_at_once_and_lets_calls_in_flight_go_on() -> None:
    answered, busy, listeners = OpenSession(is_settled=True), OpenSession(is_settled=False), Listeners()
    drain, loop = new_drain([answered, busy], listeners)
    assert not drain.is_begun
    assert drain.seconds_left == float("inf")
    drain.begin()
    try:
        assert drain.is_begun
        assert 55 < drain.seconds_left <= 60
        assert not listeners.is_listening
        await asyncio.wait_for(answered.ended.wait(), 5)
        assert not busy.ended.is_set()
        busy.is_settled = True
        await asyncio.wait_for(busy.ended.wait(), 5)
    finally:
        loop.cancel_tasks()


@override_settings(GUMCP_SHUTDOWN_GRACE_SECONDS=0.2)
async def test_call_in_flight_ends_before_the_grace_time_does() -> None:
    busy = OpenSession(is_settled=False)
    drain, loop = new_drain([busy])
    drain.begin()
    try:
        await asyncio.wait_for(busy.ended.wait(), 5)
    finally:
        loop.cancel_tasks()


@override_settings(GUMCP_SHUTDOWN_GRACE_SECONDS=60.0)
async def test_second_begin_does_not_prolong_the_grace_time(monkeypatch: pytest.MonkeyPatch) -> None:
    drain, loop = new_drain([])
    drain.begin()
    ends_at, later = drain.ends_at, time.monotonic() + 1000
    monkeypatch.setattr("gateway.host.drain.time.monotonic", lambda: later)
    drain.begin()
    monkeypatch.undo()
    loop.cancel_tasks()
    assert drain.ends_at == ends_at
