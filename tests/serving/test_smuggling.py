"""Requests that two parsers could read differently: each is refused, or read as exactly one request.

Every case is followed by a second, innocent request on the same connection. A refused case is answered by one 4xx and
the end of the connection, and neither it nor the innocent request reaches the application. A case that is read is
answered 200 twice, in order.
"""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from tests.support.connections import Client, LocalServer
from tests.support.serving_process import statuses
from tests.support.smuggling import CANARY, READ, REFUSED


async def send_in_pieces(client: Client, data: bytes, piece_bytes: int) -> None:
    """Send `data`, or as much of it as the connection takes."""
    for start in range(0, len(data), piece_bytes):
        client.connection.dataReceived(data[start : start + piece_bytes])
        await asyncio.sleep(0)
        if client.is_closed:
            break
    await client.settle()


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("piece_bytes", [1, 7, 1_000_000])
async def test_ambiguous_request_is_refused_and_nothing_of_it_is_read(name: str, piece_bytes: int) -> None:
    server = LocalServer()
    client = server.connect()
    await send_in_pieces(client, REFUSED[name] + CANARY, piece_bytes)
    (status,) = statuses(client.answer)
    assert 400 <= status < 500
    assert b"\r\nconnection: close\r\n" in client.answer
    assert json.loads(client.answer.partition(b"\r\n\r\n")[2])["error"]
    assert client.is_closed
    assert not server.served
    assert server.events == ["bad_request"]


@pytest.mark.parametrize("name", ["lines ended by bare LF", "HTTP/0.9", "TLS", "trailers ended by bare LFs"])
async def test_malformed_request_is_refused_before_it_is_whole(name: str) -> None:
    client = LocalServer().connect()
    await client.send(REFUSED[name].removesuffix(b"\r\nHost: h\r\n\r\n"))
    assert statuses(client.answer) == [400]


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("piece_bytes", [1, 7, 1_000_000])
async def test_unambiguous_request_is_read_as_one_request(name: str, piece_bytes: int) -> None:
    request, body = READ[name]
    client = LocalServer().connect()
    await send_in_pieces(client, request + CANARY, piece_bytes)
    assert statuses(client.answer) == [200, 200]
    first, second = (json.loads(content) for content in re.findall(rb"\r\n(\{.*?\})\r\n", client.answer))
    assert (first["path"], first["body"].encode()) == ("/case", body)
    assert [value for name, value in first["headers"] if name == "host"] == ["h"]
    assert (second["path"], second["body"]) == ("/canary", "")
