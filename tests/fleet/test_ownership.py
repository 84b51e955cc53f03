"""Who owns a key on several nodes of several workers, and who does when some of them leave."""

from pathlib import Path

import pytest

from gateway.fleet.ownership import Node, Ownership
from gateway.fleet.ring import Ring

FOLDER = Path("/run/gumcp")
A, B = "10.0.0.1:8000", "10.0.0.2:8000"
KEYS = [f"notes/{number}".encode() for number in range(200)]


@pytest.fixture
def here() -> Ownership:
    made = Ownership(0, 2, FOLDER, A)
    made.set_nodes({B: Node("10.0.0.2:8100", 2)})
    return made


def test_without_other_nodes_the_slots_share_all_keys() -> None:
    alone = Ownership(0, 2, FOLDER)
    routes = {alone.find(key) for key in KEYS}
    assert {(route.address, route.handover) if route else None for route in routes} == {
        None,
        ("/run/gumcp/1.sock", "/run/gumcp/1.take"),
    }


def test_nodes_agree_with_the_ring_that_nginx_has(here: Ownership) -> None:
    ring = Ring([A, B])
    for key in KEYS:
        route = here.find(key)
        assert (route is not None and route.address == "10.0.0.2:8100") == (ring.owner(key) == B)


def test_connections_to_another_node_are_kept_for_each_of_its_workers(here: Ownership) -> None:
    there = Ownership(0, 2, FOLDER, B)
    for key in KEYS:
        route = here.find(key)
        if route is not None and route.is_node:
            owner = there.find(key, is_from_node=True)
            assert route.slot == (owner.slot if owner else 0)


def test_what_comes_from_another_node_stays_on_this_one(here: Ownership) -> None:
    assert not any(route is not None and route.is_node for route in (here.find(key, is_from_node=True) for key in KEYS))


def test_worker_that_drains_sends_its_keys_to_its_successor() -> None:
    worker = Ownership(0, 2, FOLDER)
    worker.has_left = True
    assert {route.address for key in KEYS if (route := worker.find(key))} == {"/run/gumcp/0.sock", "/run/gumcp/1.sock"}
    assert None not in {worker.find(key) for key in KEYS}


def test_node_that_drains_sends_its_keys_to_other_nodes(here: Ownership) -> None:
    here.node_has_left = here.has_left = True
    assert {route and route.address for key in KEYS for route in [here.find(key)]} == {"10.0.0.2:8100"}


def test_last_node_that_drains_serves_until_its_end() -> None:
    alone = Ownership(0, 2, FOLDER, A)
    alone.node_has_left = alone.has_left = True
    assert {alone.find(key) for key in KEYS} == {None}


def test_node_that_is_gone_gives_its_keys_back(here: Ownership) -> None:
    def own_keys() -> set[bytes]:
        return {key for key in KEYS if (route := here.find(key)) is None or not route.is_node}

    before = own_keys()
    here.set_nodes({})
    assert own_keys() == set(KEYS)
    here.set_nodes({B: Node("10.0.0.2:8100", 2)})
    assert own_keys() == before
