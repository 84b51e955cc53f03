"""What becomes of a handler that is given up. Over the wire: `e2e/test_calls`."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.instances.calls import CallMiddleware, ServerCalls
from gateway.instances.listings import Listings
from gateway.instances.policies import Policies


async def test_handler_whose_caller_is_cancelled_once_more_counts_as_stuck_until_it_returns() -> None:
    may_end = asyncio.Event()

    async def insist(ctx: Any) -> dict[str, Any]:
        while not may_end.is_set():
            with suppress(asyncio.CancelledError):
                await may_end.wait()
        return {}

    calls = ServerCalls("stubborn", Listings(), Policies())
    schemas: Any = None  # they learn from lists of tools only
    context: Any = SimpleNamespace(request_id=1, method="prompts/get", params={}, session=SimpleNamespace())
    caller = asyncio.create_task(CallMiddleware(calls, "ada", schemas)(context, insist))
    for _ in range(2):
        await asyncio.sleep(0.01)
        caller.cancel()
    try:
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert calls.stuck == 1
    finally:
        may_end.set()
    await asyncio.sleep(0.01)
    assert calls.stuck == 0
