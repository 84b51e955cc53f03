"""One request and its response, as bytes: what the application sees, and what the client gets."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from tests.support.connections import Client, LocalServer
from tests.support.serving_process import statuses

GET = b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(content: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


def sending(*messages: dict[str, Any]) -> LocalServer:
    """A server whose application sends these messages, and raises if it cannot."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return LocalServer(application)


async def ask(server: LocalServer, request: bytes = GET) -> Client:
    client = server.connect()
    await client.send(request)
    return client


async def test_scope_describes_the_request() -> None:
    client = await ask(
        LocalServer(),
        b"PUT /echo/a%20b%ff?q=%20 HTTP/1.1\r\nHost: h:80\r\nX-One: 1\r\nX_One: 2\r\nx-one: 3\r\n"
        b"Content-Length: 2\r\n\r\nhi",
    )
    content = json.loads(re.findall(rb"\{.*\}", client.answer)[0])
    assert (content["method"], content["raw_path"], content["path"]) == ("PUT", "/echo/a%20b%ff", "/echo/a b�")
    assert content["headers"] == [["host", "h:80"], ["x-one", "1"], ["x-one", "3"], ["content-length", "2"]]
    assert content["body"] == "hi"


async def test_scope_of_a_whole_url_is_that_of_its_path() -> None:
    client = await ask(LocalServer(), b"GET http://h?q=1 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert json.loads(re.findall(rb"\{.*\}", client.answer)[0])["raw_path"] == "/"


async def test_pipelined_requests_are_answered_in_order() -> None:
    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(20))
    client = LocalServer().connect()
    await client.send(requests + b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    for _ in range(30):
        await client.settle()
    assert statuses(client.answer) == [200] * 21
    assert re.findall(rb'"path": "/(\w+)"', client.answer) == [b"%d" % number for number in range(20)] + [b"last"]
    assert client.is_closed


async def test_response_without_length_is_chunked_and_the_connection_goes_on() -> None:
    server = sending(start(), body(b"one", True), body(b"", True), body(b"two"))
    client = await ask(server)
    assert client.answer.endswith(b"transfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    await client.send(GET)
    assert statuses(client.answer) == [200, 200]


async def test_http_10_is_answered_in_kind_and_closed() -> None:
    client = await ask(sending(start(), body(b"one", True), body(b"two")), b"GET / HTTP/1.0\r\n\r\n")
    assert client.answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert client.answer.endswith(b"\r\n\r\nonetwo")
    assert b"chunked" not in client.answer
    assert client.is_closed


@pytest.mark.parametrize("headers", [(), ((b"content-length", b"3"),)])
async def test_head_has_no_body(headers: Any) -> None:
    client = await ask(sending(start(200, *headers), body(b"one")), GET.replace(b"GET", b"HEAD"))
    assert client.answer.endswith(b"\r\n\r\n")
    assert not client.is_closed


@pytest.mark.parametrize("status", [204, 304])
async def test_status_without_body_is_not_chunked(status: int) -> None:
    client = await ask(sending(start(status), body()))
    assert b"chunked" not in client.answer
    assert client.answer.endswith(b"\r\n\r\n")


async def test_application_may_close_the_connection() -> None:
    client = await ask(sending(start(200, (b"connection", b"close"), (b"content-length", b"0")), body()))
    assert client.answer.lower().count(b"connection: close") == 1
    assert client.is_closed


async def test_continue_is_sent_only_for_a_body_that_will_be_read() -> None:
    client = LocalServer(body_bytes=100).connect()
    head = b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    await client.send(head % 5)
    assert client.answer == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(b"hello")
    await client.send(head % 101)
    assert statuses(client.answer) == [100, 200, 413]


@pytest.mark.parametrize(("announced", "content"), [(b"5", b"too long"), (b"7", b"short")])
async def test_response_that_belies_its_length_is_not_passed_on(announced: bytes, content: bytes) -> None:
    client = await ask(sending(start(200, (b"content-length", announced)), body(content)))
    assert statuses(client.answer) == [500]


async def test_header_with_a_line_break_becomes_a_500() -> None:
    client = await ask(sending(start(200, (b"x-name", b"value\r\nset-cookie: a=b")), body()))
    assert statuses(client.answer) == [500]
    assert b"set-cookie" not in client.answer


@pytest.mark.parametrize("messages", [(), (start(),)])
async def test_application_that_ends_before_the_first_byte_is_a_500_and_the_connection_goes_on(messages: Any) -> None:
    client = await ask(sending(*messages))
    assert statuses(client.answer) == [500]
    assert not client.is_closed


async def test_application_that_ends_in_the_middle_is_a_reset() -> None:
    client = await ask(sending(start(), body(b"half", True)))
    assert client.transport.is_aborted
    assert not client.answer.endswith(b"0\r\n\r\n")


async def test_disconnect_is_received_at_once_and_ever_after() -> None:
    received: list[str] = []

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(4):
            received.append((await receive())["type"])

    client = await ask(LocalServer(wait))
    assert received == ["http.request"]
    client.leave()
    await client.settle()
    assert received == ["http.request"] + ["http.disconnect"] * 3


async def test_send_waits_while_the_client_does_not_read() -> None:
    sent: list[int] = []

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        for number in range(3):
            await send(body(bytes(100), True))
            sent.append(number)

    client = LocalServer(flood).connect()
    client.connection.pauseProducing()
    await client.send(GET)
    assert sent == []
    client.connection.resumeProducing()
    await client.settle()
    assert sent == [0, 1, 2]


async def test_application_that_sends_to_nobody_lets_others_run() -> None:
    async def spin(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        while True:
            await send(body(b"x", True))

    client = LocalServer(spin).connect()
    client.connection.dataReceived(GET)
    client.leave()
    async with asyncio.timeout(10):
        await asyncio.sleep(0)
