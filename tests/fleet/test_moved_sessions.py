"""Streams of callers who belong to another node from now on end, once their calls are answered."""

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.access.identity import Identity
from gateway.fleet import moved_sessions
from gateway.fleet.moved_sessions import end_moved_sessions, key_of


class Stream(SimpleNamespace):
    def end(self, reason: str) -> None:
        self.ended.append(self)
        self.sessions.remove(self)


def streams(*facts: dict[str, Any]) -> list[Any]:
    sessions: list[Any] = []
    ended: list[Any] = []
    for fact in facts:
        common = {"server_name": "notes", "transport": "sse", "is_settled": True, "sessions": sessions, "ended": ended}
        sessions.append(Stream(**{**common, **fact}))
    return sessions


async def test_streams_of_callers_who_moved_end_and_others_stay() -> None:
    moved, stays = Identity("ada", "k1"), Identity("bob", "k2")
    sessions = streams({"identity": moved}, {"identity": stays}, {"identity": moved, "transport": "streamable-http"})
    await end_moved_sessions(_Live(sessions), lambda key: key == b"notes/k1")
    assert [(session.identity, session.transport) for session in sessions] == [
        (stays, "sse"),
        (moved, "streamable-http"),
    ]


async def test_call_of_such_a_stream_is_answered_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved_sessions, "LOOK_SECONDS", 0)
    (session,) = sessions = streams({"identity": Identity("ada"), "is_settled": False})
    looks = 0

    def is_elsewhere(key: bytes) -> bool:
        nonlocal looks
        looks += 1
        session.is_settled = looks > 3
        return key == b"notes/ada"

    await end_moved_sessions(_Live(sessions), is_elsewhere)
    assert not sessions
    assert looks == 4


def test_nobody_is_moved_by_a_key_that_the_host_does_not_keep() -> None:
    assert key_of("notes", Identity("ada", None, None, b"digest")) is None


class _Live:
    """Iterates over what is there now, as the host's sessions do."""

    def __init__(self, sessions: list[Any]) -> None:
        self._sessions = sessions

    def __iter__(self) -> Any:
        return iter(list(self._sessions))
