from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from gateway.access.identity import Identity
from gateway.exceptions import MessageBudgetFull, TooManyRequests
from gateway.transports.message_budget import MessageBudget
from tests.support.threads import InThreads


class Key:
    """As much of a grant as the budget looks at."""

    def __init__(self, public: str) -> None:
        self.public = public


def with_key(public: str) -> Identity:
    grant: Any = Key(public)
    return Identity("ada", None, grant)


ADA = with_key("ada")


def new_budget(host: int = 8000, address: int = 4000, key: int = 2000) -> MessageBudget:
    return MessageBudget(host_bytes=host, address_bytes=address, key_bytes=key)


def test_messages_count_until_they_are_released() -> None:
    budget = new_budget()
    for _ in range(100):
        with budget.hold(ADA, "192.0.2.1", 1500):
            assert budget.held_bytes == 1500
    assert budget.held_bytes == 0
    assert (budget._by_key, budget._by_address) == ({}, {})


def test_message_that_is_kept_counts_until_its_last_holder_releases_it() -> None:
    budget = new_budget()
    with budget.hold(ADA, "192.0.2.1", 1500) as memory:
        memory.keep()
        memory.keep()
    memory.release()
    assert budget.held_bytes == 1500
    memory.release()
    assert budget.held_bytes == 0


def test_each_key_has_its_share() -> None:
    budget = new_budget()
    budget.hold(ADA, "192.0.2.1", 1500)
    with pytest.raises(TooManyRequests, match="of this key"):
        budget.hold(ADA, "192.0.2.2", 600)
    budget.hold(with_key("bob"), "192.0.2.1", 1500)
    assert budget.held_bytes == 3000


@pytest.mark.parametrize(("first", "second"), [("192.0.2.1", "::ffff:192.0.2.1"), ("2001:db8::1", "2001:db8::2")])
def test_each_address_has_its_share_whatever_the_key(first: str, second: str) -> None:
    budget = new_budget()
    for number, address in enumerate([first, second]):
        budget.hold(with_key(f"key{number}"), address, 1900)
    with pytest.raises(TooManyRequests, match="address"):
        budget.hold(with_key("another"), first, 300)
    budget.hold(with_key("another"), "198.51.100.1", 300)


def test_address_has_its_share_where_there_are_no_keys() -> None:
    budget = new_budget()
    budget.hold(Identity("ada", "any"), "192.0.2.1", 3000)
    with pytest.raises(TooManyRequests, match="address"):
        budget.hold(Identity("bob", "other"), "192.0.2.1", 1100)


def test_host_has_a_limit_of_its_own() -> None:
    budget = new_budget()
    for number in range(4):
        budget.hold(with_key(f"key{number}"), f"192.0.2.{number}", 1900)
    with pytest.raises(MessageBudgetFull):
        budget.hold(with_key("another"), "192.0.2.100", 500)
    assert budget.held_bytes == 4 * 1900


def test_refused_message_counts_nothing() -> None:
    budget = new_budget()
    memory = budget.hold(ADA, "192.0.2.1", 1500)
    for _ in range(10):
        with pytest.raises(TooManyRequests):
            budget.hold(ADA, "192.0.2.1", 1000)
        with budget.hold(ADA, "192.0.2.1", 100) as small, pytest.raises(TooManyRequests):
            small.resize(5000)
    memory.release()
    assert budget.held_bytes == 0
    assert (budget._by_key, budget._by_address) == ({}, {})


def test_message_larger_than_the_limit_is_let_in_alone() -> None:
    budget = new_budget()
    with budget.hold(ADA, "192.0.2.1", 50_000) as memory:
        assert memory.refusal is None
        with pytest.raises(TooManyRequests):
            budget.hold(ADA, "192.0.2.1", 1)
    budget.hold(ADA, "192.0.2.1", 1)


def test_last_part_of_a_limit_is_for_answers() -> None:
    budget = new_budget()
    with budget.hold(ADA, "192.0.2.1", 1700) as request:
        assert request.refusal is None
        with budget.hold(ADA, "192.0.2.1", 100) as later:
            assert isinstance(later.refusal, TooManyRequests)


def test_answer_counts_with_its_request_and_is_withheld_beyond_the_share_of_requests() -> None:
    budget = new_budget()
    with budget.hold(ADA, "192.0.2.1", 100) as first, budget.hold(ADA, "192.0.2.1", 100) as second:
        assert first.add_outgoing(1500)
        assert not second.add_outgoing(100)
        assert second.add_outgoing(50)
        assert budget.held_bytes == 1750
    assert budget.held_bytes == 0
    assert (budget._by_key, budget._by_address) == ({}, {})


@pytest.mark.parametrize("others", [ADA, with_key("bob"), Identity("eve", None)])
def test_what_a_server_sends_is_limited_for_key_and_address_and_host(others: Identity) -> None:
    budget = new_budget(host=3000, address=2500, key=2000)
    memory = budget.hold_outgoing(ADA, "192.0.2.1", 1750)
    assert memory is not None
    assert memory.hold_outgoing(1000) is None
    assert budget.hold_outgoing(others, "192.0.2.1", 1000) is None
    assert budget.hold_outgoing(with_key("another"), "192.0.2.2", 1000) is None
    assert budget.held_bytes == 1750
    memory.release()
    assert budget.held_bytes == 0


def test_second_answer_of_a_batch_is_not_alone() -> None:
    budget = new_budget()
    with budget.hold(ADA, "192.0.2.1", 100) as batch:
        assert batch.add_outgoing(50_000)
        assert not batch.add_outgoing(1000)
    with budget.hold(ADA, "192.0.2.1", 100) as batch:
        assert batch.add_outgoing(1000)
        assert not batch.has_room_for({"content": [{"text": "x" * 50_000}]})
    assert budget.held_bytes == 0


def test_large_answer_passes_if_nothing_else_is_held() -> None:
    budget = new_budget()
    with budget.hold(ADA, "192.0.2.1", 100) as memory:
        assert memory.add_outgoing(50_000)
    assert budget.held_bytes == 0


class Message:
    """A message that can be asked whether it is still there."""


@pytest.mark.parametrize("size_bytes", [900, 1900])
def test_refused_message_is_freed_as_soon_as_it_was_refused(size_bytes: int) -> None:
    """A body of 4 MiB must not wait for the collector, which counts objects and not bytes."""
    budget = new_budget()
    budget.hold(ADA, "192.0.2.1", 1000)

    def refuse() -> weakref.ref[Message]:
        message = Message()
        try:
            with budget.hold(ADA, "192.0.2.1", size_bytes) as memory:
                assert memory.refusal is not None
                raise memory.refusal
        except TooManyRequests:
            return weakref.ref(message)

    gc.disable()
    try:
        assert refuse()() is None
    finally:
        gc.enable()


def test_message_that_grows_after_its_client_left_counts_nothing() -> None:
    budget = new_budget()
    memory = budget.hold(ADA, "192.0.2.1", 100)
    memory.release()
    memory.resize(1000)
    assert budget.held_bytes == 0


def test_several_threads_may_release_at_once(in_threads_at_once: InThreads) -> None:
    budget = new_budget(10**9, 10**9, 10**9)

    def hold_and_release() -> None:
        with budget.hold(ADA, "192.0.2.1", 100) as memory:
            memory.keep()
            memory.resize(150)
        memory.release()

    assert not in_threads_at_once(hold_and_release)
    assert budget.held_bytes == 0
    assert (budget._by_key, budget._by_address) == ({}, {})
