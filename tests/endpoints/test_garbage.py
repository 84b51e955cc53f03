"""A call leaves no circle of references: only Python's garbage collector could free it, at the cost of later calls."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.support.in_process import InProcessHost, host_in_process
from tests.support.processes import ROOT

LEDGER = "/ledger/ada:key"
CALLS = 5

Call = Callable[[], Awaitable[object]]


@pytest.fixture
async def host() -> AsyncIterator[InProcessHost]:
    async with host_in_process(ROOT / "tests" / "servers" / "eras") as host:
        yield host


async def circles_of(call: Call) -> Counter[str]:
    """The types of objects of the project and of the SDK that some calls leave in circles."""
    await call()  # what the first call makes, and keeps or drops
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(CALLS):
            await call()
        gc.collect()
        return Counter(
            type(found).__qualname__ for found in gc.garbage if type(found).__module__.startswith(("gateway.", "mcp"))
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


async def test_call_of_an_sse_session_leaves_no_circle(host: InProcessHost) -> None:
    async with await host.open_sse(LEDGER) as client:
        await client.initialize()
        assert await circles_of(lambda: client.call("echo", text="x")) == {}


async def test_call_of_a_streamable_http_session_leaves_no_circle(host: InProcessHost) -> None:
    client = await host.initialize(LEDGER)
    assert await circles_of(lambda: client.call("echo", text="x")) == {}


async def test_stateless_call_leaves_no_circle(host: InProcessHost) -> None:
    parameters = {"name": "echo", "arguments": {"text": "x"}}
    assert await circles_of(lambda: host.post_stateless(LEDGER, "tools/call", parameters).reply()) == {}
