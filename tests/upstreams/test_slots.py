"""How many child processes there may be, and how many of them one user may have."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.exceptions import InstanceUnavailable
from gateway.upstreams.slots import Slots


@pytest.fixture
def slots(settings: Any) -> Slots:
    settings.GUMCP_MAX_CHILDREN = 8
    return Slots()


def test_one_user_gets_all_places_but_the_last_ones(slots: Slots) -> None:
    for _ in range(6):
        slots.take("ada")
    with pytest.raises(InstanceUnavailable, match="many of them are yours"):
        slots.take("ada")
    for user in ("bob", "eve"):
        slots.take(user)
    with pytest.raises(InstanceUnavailable, match="as many child processes as it may"):
        slots.take("zoe")


def test_place_that_is_given_back_can_be_taken_again(slots: Slots) -> None:
    for _ in range(6):
        slots.take("ada")
    slots.give_back("ada")
    slots.take("ada")
    for _ in range(6):
        slots.give_back("ada")
    assert (slots.used, slots._by_user) == (0, {})


def test_single_place_can_be_taken(settings: Any) -> None:
    settings.GUMCP_MAX_CHILDREN = 1
    Slots().take("ada")
