"""Who may make the requests of the admin's scripts."""

import threading

import pytest

from gateway.console.overview import PERMISSION
from gateway.endpoints.page_requests import PageRequests
from gateway.exceptions import NotPermitted


@pytest.mark.parametrize("method", ["admit", "require_still"])
async def test_stranger_is_refused_without_a_thread(method: str) -> None:
    """There are two threads, and operators need them."""
    scope = {"type": "http", "method": "GET", "path": "/-/console/live", "headers": [(b"cookie", b"theme=dark")]}
    before = _threads()
    with pytest.raises(NotPermitted):
        await getattr(PageRequests(), method)(scope, PERMISSION)
    assert _threads() <= before


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("page-requests")}
