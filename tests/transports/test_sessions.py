import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gateway import signals
from gateway.access.identity import Identity
from gateway.transports.sessions import MAX_FACT_LENGTH, Session, Sessions

ADA, BOB = Identity("ada", "key"), Identity("bob", "key")


@pytest.fixture
def told() -> Iterator[list[tuple[str, Session]]]:
    """The signals about sessions, in order."""
    told: list[tuple[str, Session]] = []

    def on_opened(session: Session, **_: Any) -> None:
        told.append(("opened", session))

    def on_closed(session: Session, **_: Any) -> None:
        told.append(("closed", session))

    signals.session_opened.connect(on_opened)
    signals.session_closed.connect(on_closed)
    yield told
    signals.session_opened.disconnect(on_opened)
    signals.session_closed.disconnect(on_closed)


def new_session(identity: Identity = ADA, **facts: Any) -> Session:
    return Session(**{"server_name": "workshop", "identity": identity, "transport": "sse", "address": "", **facts})


class Wire:
    """A wire that carries nothing."""

    is_flushed = True

    def __init__(self) -> None:
        self.stops = 0

    def deliver(self, message: Any, scope: Any) -> None:
        raise AssertionError("nothing is delivered here")

    def announce(self) -> None:
        raise AssertionError("nothing is announced here")

    def stop(self) -> None:
        self.stops += 1


@contextmanager
def opened(sessions: Sessions, session: Session) -> Iterator[Wire]:
    wire = Wire()
    session.open(wire, lambda: sessions.remove(session))
    sessions.add(session)
    yield wire
    session.end()


def test_open_session_is_found_by_its_owner_only() -> None:
    sessions, session = Sessions(), new_session()
    with opened(sessions, session):
        assert sessions.find(session.id, "workshop", ADA, "sse") is session
        assert sessions.find(session.id, "workshop", BOB, "sse") is None
        assert sessions.find(session.id, "workshop", Identity("ada"), "sse") is None
        assert sessions.find(session.id, "workshop", Identity("ada", "other"), "sse") is None
        assert sessions.find(session.id, "bystander", ADA, "sse") is None
        assert sessions.find(session.id, "workshop", ADA, "streamable-http") is None
        assert sessions.find("", "workshop", ADA, "sse") is None
    assert sessions.find(session.id, "workshop", ADA, "sse") is None
    assert len(sessions) == 0


def test_both_ends_of_a_session_are_told_once(told: list[tuple[str, Session]]) -> None:
    sessions, session = Sessions(), new_session()
    with opened(sessions, session):
        pass
    session.end()
    sessions.remove(session)
    assert told == [("opened", session), ("closed", session)]


def test_receiver_that_fails_does_not_keep_a_session_from_opening_and_closing() -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("a receiver failed")

    signals.session_opened.connect(fail)
    signals.session_closed.connect(fail)
    try:
        sessions, session = Sessions(), new_session()
        with opened(sessions, session):
            assert len(sessions) == 1
        assert len(sessions) == 0
    finally:
        signals.session_opened.disconnect(fail)
        signals.session_closed.disconnect(fail)


def test_session_is_ended_once_and_the_first_reason_stands() -> None:
    sessions, session = Sessions(), new_session()
    with opened(sessions, session) as wire:
        session.end("first")
        session.end("second")
    assert (wire.stops, session.end_reason) == (1, "first")


def test_session_cannot_be_found_once_its_wire_stops() -> None:
    sessions, session = Sessions(), new_session()
    with opened(sessions, session) as wire:
        wire.stop = lambda: found.append(sessions.find(session.id, "workshop", ADA, "sse"))  # type: ignore[method-assign]
        found: list[Session | None] = []
    assert found == [None]


def test_session_is_found_by_its_row() -> None:
    sessions, one, two = Sessions(), new_session(), new_session(BOB)
    with opened(sessions, one), opened(sessions, two):
        assert sessions.by_row_id(two.row_id) is two
    assert sessions.by_row_id(two.row_id) is None


def test_ids_cannot_be_guessed_and_say_nothing() -> None:
    sessions = [new_session() for _ in range(100)]
    assert len({session.id for session in sessions}) == 100
    assert all(len(session.id) == 32 for session in sessions)
    assert all(session.id not in repr(session) and "key" not in repr(session) for session in sessions)
    assert all(session.id != session.row_id.hex for session in sessions)


@pytest.mark.parametrize("step_seconds", [-7200, 7200])
def test_clock_that_is_set_expires_nothing_and_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, step_seconds: float
) -> None:
    sessions, session = Sessions(), new_session(transport="streamable-http")
    now, monotonic = time.time(), time.monotonic()
    with opened(sessions, session):
        session.touch()
        monkeypatch.setattr(time, "time", lambda: now + step_seconds)
        assert sessions.expire(1800) == 0
        monkeypatch.setattr(time, "monotonic", lambda: monotonic + 1801)
        assert sessions.expire(1800) == 1


def test_sessions_are_looked_at_for_expiry_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions, session = Sessions(), new_session(transport="streamable-http")
    start = time.monotonic()
    with opened(sessions, session):
        for seconds, expired in ((1799, 0), (1801, 0), (1799 + 18, 1)):
            monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: start + seconds)
            assert sessions.expire(1800) == expired


def test_servers_with_sessions_are_known() -> None:
    sessions, one, other = Sessions(), new_session(), new_session(BOB)
    with opened(sessions, one):
        with opened(sessions, other):
            assert sessions.servers == [one.server_name]
        assert sessions.servers == [one.server_name]
    assert sessions.servers == []


@pytest.mark.parametrize("value", [None, "", {"a": 1}, ["x"], 5, "x" * 10_000])
def test_what_a_client_says_of_itself_is_kept_as_text_of_bounded_length(value: object) -> None:
    session = new_session()
    session.note_client(value, value, value)
    for fact in (session.client_name, session.client_version, session.protocol_version):
        assert isinstance(fact, str)
        assert len(fact) <= MAX_FACT_LENGTH


def test_key_that_a_client_gives_as_its_name_is_not_kept() -> None:
    session = new_session()
    key = f"gumcp_Ab3dE6gH_{'x' * 49}"
    session.note_client(key, f"1 {key}", "2025-11-25")
    assert (session.client_name, session.client_version) == ("gumcp_Ab3dE6gH", "1 gumcp_Ab3dE6gH")
