"""Bounds of bodies and open requests on other ASGI servers than our Daphne."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.endpoints.arriving_bodies import ArrivingBodies, ArrivingBody, OpenRequests
from gateway.exceptions import BodyTimeout, TooManyConnections, WastefulBody
from gateway.http.body_limit import BodyLimit
from gateway.http.requests import read_body
from gateway.serving.limits import ServingLimits
from tests.support.asgi_client import AsgiClient


def parts(*sizes: int) -> Any:
    """A `receive` whose body comes in parts of these sizes, and never ends."""
    messages = [{"type": "http.request", "body": b"x" * size, "more_body": True} for size in sizes]

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        return await asyncio.Event().wait()

    return receive


def whole(body: bytes) -> Any:
    messages: list[Any] = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    return receive


def patient(receive: Any) -> ArrivingBody:
    return ArrivingBody(receive, ArrivingBodies())


def impatient(receive: Any) -> ArrivingBody:
    limits = ServingLimits(body_grace_seconds=0.05, body_bytes_per_second=1_000_000)
    return ArrivingBody(receive, ArrivingBodies(limits, look_seconds=0.01))


async def test_whole_body_is_passed_on_and_the_disconnect_after_it() -> None:
    receive = patient(whole(b"{}"))
    assert await read_body({"headers": []}, receive, 10) == b"{}"
    assert (await receive())["type"] == "http.disconnect"


async def test_body_in_many_small_parts_is_refused() -> None:
    with pytest.raises(WastefulBody):
        await read_body({"headers": []}, patient(parts(*[1] * 1000)), 10_000)


async def test_body_in_parts_as_networks_make_them_is_read() -> None:
    receive = patient(parts(*[500] * 2000))
    for _ in range(2000):
        assert len((await receive())["body"]) == 500


@pytest.mark.parametrize("sizes", [(), (100,), (1, 1, 1)])
async def test_body_that_does_not_come_is_given_up(sizes: tuple[int, ...]) -> None:
    async with asyncio.timeout(10):
        with pytest.raises(BodyTimeout):
            await read_body({"headers": []}, impatient(parts(*sizes)), 10_000)


async def test_client_that_has_sent_its_body_may_wait_for_the_answer() -> None:
    messages: list[Any] = [{"type": "http.request", "body": b"{}"}]
    left = asyncio.Event()

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        await left.wait()
        return {"type": "http.disconnect"}

    arriving = impatient(receive)
    await arriving()
    waiting = asyncio.create_task(arriving())
    await asyncio.sleep(0.1)  # longer than a body may take
    assert not waiting.done()
    left.set()
    assert (await waiting)["type"] == "http.disconnect"


async def test_page_whose_body_is_given_up_is_answered_and_its_connection_closed() -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        await read_body(scope, receive, 10_000)

    client = AsgiClient()
    await BodyLimit(page, 10_000)({"headers": []}, patient(parts(*[1] * 1000)), client.send)
    assert (client.status, client.headers["connection"]) == (400, "close")


async def test_wait_for_a_late_body_that_is_cancelled_by_others_too_ends_as_cancelled() -> None:
    waiting = asyncio.create_task(impatient(parts())())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_requests_of_one_address_and_of_all_are_bounded() -> None:
    requests = OpenRequests(at_most=3, of_an_address=2)
    first = [requests.enter("192.0.2.1"), requests.enter("::ffff:192.0.2.1")]
    with pytest.raises(TooManyConnections):
        requests.enter("192.0.2.1")
    second = requests.enter("192.0.2.2")
    with pytest.raises(TooManyConnections):
        requests.enter("192.0.2.3")
    for counted in (*first, second):
        requests.leave(counted)
    assert (requests._open, requests._by_address) == (0, {})
