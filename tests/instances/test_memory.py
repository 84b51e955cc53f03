"""What an idle instance costs."""

import asyncio
import gc
import tracemalloc
from collections.abc import Iterator

import pytest

from gateway.access.identity import Identity
from gateway.catalog.discovery import discover
from gateway.instances.instances import Instances
from gateway.instances.lanes import Lanes
from gateway.instances.listings import Listings
from gateway.instances.policies import Policies
from tests.support.server_folders import WriteServer

KIBIBYTES_OF_ONE = 9
"""It takes 7 KiB, of which about 2 are the SDK's and the server's own."""

INSTANCES = 150


@pytest.fixture
def tracing() -> Iterator[None]:
    tracemalloc.start(1)
    yield
    tracemalloc.stop()


async def test_idle_instance_of_a_small_server_takes_a_few_kibibytes(write_server: WriteServer, tracing: None) -> None:
    (definition,) = discover([write_server("sound")]).definitions
    lanes = Lanes()
    instances = Instances(lanes, Listings(), Policies())

    async def make(first: int, count: int) -> None:
        for number in range(first, first + count):
            async with instances.use(definition, Identity(f"user-{number}", "key"), f"192.0.{number // 250}.1"):
                pass
        gc.collect()

    try:
        await make(0, 20)
        before, _ = tracemalloc.get_traced_memory()
        await make(20, INSTANCES)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        await instances.stop()
        await asyncio.to_thread(lanes.stop)
    assert (after - before) / INSTANCES / 1024 < KIBIBYTES_OF_ONE
