from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.instances.lanes import Lane
from tests.support.lane_server import LaneServer


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("workshop")
    yield lane
    lane.stop()


@pytest.fixture
def workshop() -> Iterator[LaneServer]:
    """A server in a lane of its own."""
    server = LaneServer()
    yield server
    server.stop()
