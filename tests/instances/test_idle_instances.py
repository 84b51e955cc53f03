"""Which idle instances make room."""

from typing import Any

from gateway.access.grants import Grant, KeyFacts
from gateway.access.identity import Identity
from gateway.access.limits import RateLimits
from gateway.instances.idle_instances import IdleInstances, share_of
from gateway.instances.instance import Instance


def instance(share: str, user_id: str) -> Instance:
    not_running: Any = None
    return Instance("workshop", Identity(user_id), not_running, share)


def with_key(user_id: str) -> Identity:
    facts = KeyFacts(1, "gum_public", b"", user_id, None, expires_at=None, is_active=True)
    return Identity(user_id, "key", Grant(facts, 0.0, RateLimits({})))


def popped(idle: IdleInstances) -> list[str]:
    """The user ids of all instances, in the order in which they make room."""
    users = []
    while (found := idle.pop()) is not None:
        users.append(found.identity.user_id)
    return users


def test_longest_idle_instance_makes_room_where_all_shares_are_equal() -> None:
    idle = IdleInstances()
    instances = [instance(f"share {number}", f"user {number}") for number in range(4)]
    for each in instances:
        idle.add(each)
    idle.discard(instances[0])
    idle.add(instances[0])
    assert popped(idle) == ["user 1", "user 2", "user 3", "user 0"]


def test_largest_share_makes_room_until_the_others_are_as_large() -> None:
    idle = IdleInstances()
    idle.add(instance("ada's address", "ada"))
    for number in range(4):
        idle.add(instance("mallory's address", f"invented {number}"))
    idle.add(instance("bob's address", "bob"))
    assert popped(idle) == ["invented 0", "invented 1", "invented 2", "ada", "bob", "invented 3"]


def test_ten_thousand_invented_users_of_one_address_cost_nobody_else_an_instance() -> None:
    idle = IdleInstances()
    others = {f"user {number}" for number in range(99)}
    for name in others:
        idle.add(instance(f"address of {name}", name))
    for number in range(10_000):
        idle.add(instance("mallory's address", f"invented {number}"))
        if number:  # the host is full with 100 instances
            made_room = idle.pop()
            assert made_room is not None
            assert made_room.share == "mallory's address"
    assert {each.identity.user_id for each in idle} == others | {"invented 9999"}


def test_instance_that_is_used_again_does_not_make_room() -> None:
    idle = IdleInstances()
    first, second = instance("share", "first"), instance("share", "second")
    idle.add(first)
    idle.add(second)
    idle.discard(first)
    idle.discard(first)
    assert popped(idle) == ["second"]
    assert idle.pop() is None


def test_no_trace_is_left_of_what_is_not_idle_any_more() -> None:
    idle = IdleInstances()
    instances = [instance(f"share {number % 3}", str(number)) for number in range(30)]
    for each in instances:
        idle.add(each)
    for each in instances:
        idle.discard(each)
    assert (idle._shares, idle._by_size, idle._largest) == ({}, {}, 0)


def test_share_is_the_address_or_network_where_keys_are_not_checked() -> None:
    ada, bob = Identity("ada", "key"), Identity("bob")
    assert share_of(ada, "192.0.2.1") == share_of(bob, "192.0.2.1") == share_of(bob, "::ffff:192.0.2.1")
    assert share_of(ada, "192.0.2.1") != share_of(ada, "192.0.2.2")
    assert share_of(ada, "2001:db8::1") == share_of(bob, "2001:db8::2")
    assert share_of(ada, "") == share_of(bob, "")


def test_share_is_the_user_where_keys_are_checked() -> None:
    ada, bob = with_key("ada"), with_key("bob")
    assert share_of(ada, "192.0.2.1") == share_of(ada, "192.0.2.2") != share_of(bob, "192.0.2.1")
