"""Who gets room for a session, and which session makes room."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest

from gateway.access.grants import Grant, KeyFacts
from gateway.access.identity import Identity
from gateway.access.limits import RateLimits
from gateway.access.session_room import KNOWN_IDLE, LARGE_GROUP, MADE_ROOM, SessionRoom
from gateway.exceptions import SessionLimitReached, TooManyRequests, Unauthenticated
from gateway.transports.message_budget import MessageBudget
from gateway.transports.sessions import Session, Sessions

ADDRESS = "192.0.2.1"


class House:
    """Sessions in memory, and the room for them."""

    def __init__(self, room: SessionRoom, limits: RateLimits) -> None:
        self.room = room
        self.limits = limits
        self.sessions = Sessions()

    def open(self, identity: Identity, address: str = ADDRESS, *, used_at: float = 0.0) -> Session[Any]:
        self.room.make(identity, address)
        session: Session[Any] = Session("time", identity, "streamable-http", address, last_used=used_at)
        session.open(Mock(), lambda: self.sessions.remove(session))
        self.sessions.add(session)
        return session

    def is_open(self, session: Session[Any]) -> bool:
        return session in list(self.sessions)


@pytest.fixture
def houses() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def new_house(stack: ExitStack, **limits: int) -> House:
    refusals = RateLimits({})
    house = House(SessionRoom(refusals, **limits), refusals)
    house.room.start()
    stack.callback(house.room.stop)
    return house


def with_key(number: int = 1) -> Identity:
    facts = KeyFacts(number, f"gumcp_public{number:02}", b"", "ada", None, None, is_active=True)
    return Identity("ada", f"key-{number}", Grant(facts, 0.0, RateLimits({})))


def without_key(user_id: str = "ada") -> Identity:
    return Identity(user_id)


def test_longest_idle_session_of_a_key_makes_room(houses: ExitStack) -> None:
    house, identity = new_house(houses, of_key=3), with_key()
    oldest = house.open(identity, used_at=1)
    longest_idle = house.open(identity, used_at=0)
    newest = house.open(identity, used_at=2)
    neighbour = house.open(with_key(2), used_at=-1)
    newcomer = house.open(identity, used_at=3)
    assert not house.is_open(longest_idle)
    assert longest_idle.end_reason == MADE_ROOM
    assert all(house.is_open(session) for session in (oldest, newest, neighbour, newcomer))


def test_client_that_never_ends_its_sessions_is_never_refused(houses: ExitStack) -> None:
    house, identity = new_house(houses, of_key=100, of_address=1000, of_host=10_000), with_key()
    for run in range(500):
        house.open(identity, used_at=run)
    assert len(house.sessions) == 100
    assert {session.last_used for session in house.sessions} == set(range(400, 500))


@pytest.mark.parametrize("in_use", ["open stream", "request under way", "HTTP+SSE"])
def test_session_in_use_never_makes_room_and_the_newcomer_is_refused(houses: ExitStack, in_use: str) -> None:
    house, identity = new_house(houses, of_key=2), with_key()
    sessions = [house.open(identity), house.open(identity)]
    for session in sessions:
        if in_use == "open stream":
            session.open_requests = 1
        elif in_use == "request under way":
            session.in_flight[1] = MessageBudget(host_bytes=1, address_bytes=1, key_bytes=1).hold(
                session.identity, "", 0
            )
        else:
            session.transport = "sse"
    with pytest.raises(TooManyRequests, match="This key has as many sessions in use as it may") as refusal:
        house.open(identity)
    assert dict(refusal.value.headers)[b"retry-after"] == b"10"
    assert all(house.is_open(session) for session in sessions)
    assert [*house.limits.take_refusals()] == [("sessions of a key", "gumcp_public01")]
    sessions[1].open_requests, sessions[1].transport = 0, "streamable-http"
    sessions[1].in_flight.clear()
    house.open(identity)
    assert [house.is_open(session) for session in sessions] == [True, False]


def test_session_that_was_used_since_the_last_look_is_not_the_longest_idle(houses: ExitStack) -> None:
    house, identity = new_house(houses, of_key=3), with_key()
    first, second, third = (house.open(identity, used_at=number) for number in range(3))
    house.open(identity, used_at=3)
    second.last_used = 10
    house.open(identity, used_at=4)
    assert [house.is_open(session) for session in (first, second, third)] == [False, True, False]


def test_host_makes_room_and_refuses_only_while_all_are_in_use(houses: ExitStack) -> None:
    house = new_house(houses, of_host=2)
    idle, busy = house.open(without_key("idle")), house.open(without_key("busy"))
    busy.open_requests = 1
    newcomer = house.open(without_key("new"))
    newcomer.open_requests = 1
    assert (house.is_open(idle), house.is_open(busy)) == (False, True)
    with pytest.raises(SessionLimitReached):
        house.open(without_key("late"))


def test_address_has_its_share_without_keys_too(houses: ExitStack) -> None:
    house = new_house(houses, of_address=2, of_host=4)
    neighbour = house.open(without_key("bob"), "192.0.2.9")
    greedy = [house.open(without_key(f"user{number}"), used_at=1) for number in range(10)]
    assert house.is_open(neighbour)
    for session in greedy[-2:]:
        session.open_requests = 1
    with pytest.raises(TooManyRequests, match="address"):
        house.open(without_key("one more"))
    assert house.is_open(house.open(without_key("carol"), "192.0.2.10"))


def test_site_that_moves_through_its_networks_is_held_to_four_shares(houses: ExitStack) -> None:
    house = new_house(houses, of_address=2)
    for number in range(100):
        house.open(without_key(), f"2001:db8:1:{number:x}::1", used_at=number)
    assert len(house.sessions) == 8
    house.open(without_key(), "2001:db8:2::1")
    assert len(house.sessions) == 9


def test_listener_takes_the_room_of_a_session_and_cannot_be_ended_for_another(houses: ExitStack) -> None:
    house, ada, bob = new_house(houses, of_key=1, of_address=2, of_host=3), with_key(1), with_key(2)
    with house.room.listening(ada, ADDRESS):
        with pytest.raises(TooManyRequests, match="key"):
            house.room.make(ada, "192.0.2.7")
        house.room.make(bob, ADDRESS)
        with house.room.listening(ada, ADDRESS):
            with pytest.raises(TooManyRequests, match="address"):
                house.room.make(bob, ADDRESS)
            with house.room.listening(bob, "192.0.2.7"), pytest.raises(SessionLimitReached):
                house.room.make(with_key(3), "192.0.2.8")
    house.room.make(ada, ADDRESS)
    assert (ada.grant and ada.grant.sessions, house.room._groups) == (0, {})


def test_refused_newcomer_ends_nobody(houses: ExitStack) -> None:
    house, ada, bob = new_house(houses, of_key=1, of_host=2), with_key(1), with_key(2)
    idle = house.open(ada)
    busy = house.open(bob)
    busy.open_requests = 1
    with pytest.raises(TooManyRequests):
        house.open(bob)
    assert house.is_open(idle)


def test_question_whether_there_is_room_ends_nobody(houses: ExitStack) -> None:
    house, identity = new_house(houses, of_key=1), with_key()
    idle = house.open(identity)
    house.room.require(identity, ADDRESS)
    assert house.is_open(idle)


def test_key_that_was_revoked_meanwhile_gets_no_room(houses: ExitStack) -> None:
    house, identity = new_house(houses), with_key()
    assert identity.grant is not None
    identity.grant.facts = replace(identity.grant.facts, is_active=False)
    with pytest.raises(Unauthenticated):
        house.open(identity)


def test_nothing_is_kept_of_sessions_that_ended(houses: ExitStack) -> None:
    house, identity = new_house(houses, of_key=KNOWN_IDLE, of_address=1000, of_host=1000), with_key()
    sessions = [house.open(identity, used_at=number) for number in range(2 * KNOWN_IDLE)]
    for session in sessions:
        session.end("")
    assert house.room._groups == {}
    assert identity.grant is not None
    assert identity.grant.sessions == 0


def test_newcomers_do_not_each_look_at_all_sessions_while_all_are_in_use(
    houses: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = new_house(houses, of_host=LARGE_GROUP)
    for _ in range(LARGE_GROUP):
        house.open(without_key()).open_requests = 1
    looks: list[int] = []
    monkeypatch.setattr(
        "gateway.access.session_room.nsmallest", lambda number, items: looks.append(len(list(items))) or []
    )
    for _ in range(50):
        with pytest.raises(SessionLimitReached):
            house.open(without_key())
    assert len(looks) == 1
