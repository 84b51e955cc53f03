"""Reading requests: targets and bodies."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.exceptions import BodyTooLarge, ClientDisconnected
from gateway.http.requests import in_origin_form, raw_path, read_body


def test_whole_url_as_a_target_is_split_and_goes_before_the_host_header() -> None:
    scope = {
        "path": "http://mcp.example.com:8000/time/a:b",
        "raw_path": b"http://mcp.example.com:8000/time/a%3Ab",
        "headers": [(b"host", b"other"), (b"accept", b"*/*")],
    }
    split = in_origin_form(scope)
    assert (split["path"], raw_path(split)) == ("/time/a:b", "/time/a%3Ab")
    assert split["headers"] == [(b"host", b"mcp.example.com:8000"), (b"accept", b"*/*")]


@pytest.mark.parametrize("target", ["*", "mcp.example.com:443", "ftp://h/x", ""])
def test_other_targets_are_left_as_they_are(target: str) -> None:
    scope = {"path": target, "headers": []}
    assert in_origin_form(scope) is scope


def test_target_without_a_path_is_the_root() -> None:
    assert in_origin_form({"path": "HTTP://h", "headers": []})["path"] == "/"


def body(*messages: Any) -> Any:
    left = list(messages)

    async def receive() -> Any:
        return left.pop(0)

    return receive


def part(content: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


async def test_body_in_parts_is_joined() -> None:
    receive = body(part(b"he", True), part(b"", True), part(b"llo", False))
    assert await read_body({"headers": []}, receive, 5) == b"hello"


async def test_body_that_is_announced_or_grows_too_long_is_read_over_and_refused() -> None:
    announced = {"headers": [(b"content-length", b"6")]}
    with pytest.raises(BodyTooLarge, match="longer than 5 bytes"):
        await read_body(announced, body(part(b"abc", True), part(b"def", False)), 5)
    with pytest.raises(BodyTooLarge, match="longer than 5 bytes"):
        await read_body({"headers": []}, body(part(b"abc", True), part(b"def", True), part(b"g", False)), 5)


async def test_client_that_asks_before_it_sends_is_refused_without_reading() -> None:
    scope = {"headers": [(b"content-length", b"6"), (b"expect", b"100-continue")]}
    with pytest.raises(BodyTooLarge):
        await read_body(scope, body(), 5)


async def test_client_that_leaves_in_its_body_is_noticed() -> None:
    with pytest.raises(ClientDisconnected):
        await read_body({"headers": []}, body(part(b"a", True), {"type": "http.disconnect"}), 5)
