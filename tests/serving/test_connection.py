"""One connection: deadlines, refusals and what they count, without a socket."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from gateway.serving.limits import ServingLimits
from gateway.serving.timetable import DRAIN_ALLOWANCE_SECONDS, PEER_ALLOWANCE_SECONDS
from gateway.serving.turns import BODIES_PER_TURN
from tests.support.connections import Client, LocalServer
from tests.support.serving_process import statuses

LIMITS = ServingLimits()
HEAD = b"POST /echo HTTP/1.1\r\nHost: h\r\n"


def later(client: Client, seconds: float) -> None:
    """Check the connection's deadlines as if so much time had passed."""
    client.connection.check_deadlines(time.monotonic() + seconds)


def error(client: Client) -> str:
    return str(json.loads(client.answer.rpartition(b"\r\n\r\n")[2])["error"])


async def test_request_is_answered_and_the_connection_goes_on() -> None:
    client = LocalServer().connect()
    for number in range(1, 4):
        await client.send(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
        assert statuses(client.answer) == [200] * number
    assert not client.is_closed


@pytest.mark.parametrize(
    ("sent", "seconds", "event"),
    [
        (b"GET / HT", LIMITS.header_timeout_seconds, "header_timeout"),
        (HEAD + b"Content-Length: 9\r\n\r\nx", LIMITS.body_grace_seconds, "body_timeout"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nx", LIMITS.body_grace_seconds, "body_timeout"),
    ],
)
async def test_request_that_does_not_arrive_in_time_is_answered_408(sent: bytes, seconds: float, event: str) -> None:
    server = LocalServer()
    client = server.connect()
    await client.send(sent)
    later(client, seconds - 1)
    assert not client.is_closed
    later(client, seconds + 1)
    assert statuses(client.answer) == [408]
    assert client.is_closed
    assert server.events == [event]


async def test_body_that_keeps_the_lowest_speed_has_its_whole_time() -> None:
    client = LocalServer().connect()
    await client.send(HEAD + b"Content-Length: 1000000\r\n\r\n" + bytes(LIMITS.body_bytes_per_second * 30))
    later(client, LIMITS.body_grace_seconds + 25)
    assert not client.is_closed
    later(client, LIMITS.body_grace_seconds + 35)
    assert statuses(client.answer) == [408]


async def test_silent_connections_are_closed_without_an_answer() -> None:
    server = LocalServer()
    new, used = server.connect(), server.connect()
    await used.send(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
    later(new, LIMITS.header_timeout_seconds + 1)
    later(used, LIMITS.header_timeout_seconds + 1)
    assert (new.is_closed, new.answer) == (True, b"")
    assert not used.is_closed
    later(used, LIMITS.keep_alive_seconds + 1)
    assert used.is_closed
    assert server.events == ["header_timeout"]


async def test_client_that_takes_nothing_is_cut_and_one_that_takes_something_is_not() -> None:
    server = LocalServer(buffered_bytes=1000, slow_reader_seconds=30)
    client = server.connect()
    await client.send(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
    client.connection.write(bytes(10_000))
    client.transport.unread_bytes = 9000
    later(client, 0)
    client.transport.unread_bytes = 8000
    later(client, 31)
    assert not client.is_closed
    later(client, 62)
    assert server.events == ["slow_reader"]
    assert client.is_closed


@pytest.mark.parametrize(
    ("request_", "status", "event", "reason"),
    [
        (HEAD + b"Content-Length: 4194305\r\n\r\n", 413, "body_too_large", "The body is longer than 4194304 bytes."),
        (HEAD + b"A: b\r\n" * 200 + b"\r\n", 431, "bad_request", "The request has more than 200 header lines."),
        (HEAD + b"A: " + b"b" * 17_000, 431, "bad_request", "headers are longer than 16384 bytes."),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request", "The request must have one Host header"),
        (
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1000,
            400,
            "wasteful_body",
            "The body comes in too many chunks for its size.",
        ),
    ],
)
async def test_refusal_says_why_and_is_counted(request_: bytes, status: int, event: str, reason: str) -> None:
    server = LocalServer()
    client = server.connect()
    await client.send(request_)
    assert statuses(client.answer) == [status]
    assert reason in error(client)
    assert server.events == [event]
    assert not server.served


async def test_connections_beyond_the_limit_are_answered_503() -> None:
    server = LocalServer(connections=2, connections_per_address=1)
    first, surplus, other = server.connect(), server.connect(), server.connect("127.0.0.2")
    assert statuses(surplus.answer) == [503]
    assert server.events == ["too_many_connections"]
    assert not other.answer
    surplus.leave()
    first.leave()
    assert not server.connect().answer


async def test_mapped_address_is_counted_as_the_one_it_maps() -> None:
    server = LocalServer(connections_per_address=1)
    server.connect("192.0.2.1")
    assert statuses(server.connect("::ffff:192.0.2.1").answer) == [503]


async def test_oldest_large_body_is_refused_when_all_together_hold_too_much() -> None:
    server = LocalServer(unfinished_bodies_bytes=250_000)
    clients = [server.connect(f"127.0.0.{last}") for last in range(1, 5)]
    for client in clients:
        await client.send(HEAD + b"Content-Length: 100000\r\n\r\n" + bytes(99_999))
    assert [statuses(client.answer) for client in clients] == [[503], [503], [], []]
    for client in clients[2:]:
        await client.send(b"x")
        assert statuses(client.answer) == [200]
    assert server.unfinished_bodies.held_bytes == 0


async def test_few_large_bodies_are_read_in_one_turn_of_the_loop() -> None:
    server = LocalServer()
    clients = [server.connect() for _ in range(BODIES_PER_TURN * 2)]
    for client in clients:
        client.connection.dataReceived(HEAD + b"Content-Length: 200000\r\n\r\n" + bytes(65_536))
    waiting = [client for client in clients if client.transport.producerState == "paused"]
    assert len(waiting) == BODIES_PER_TURN
    await clients[0].settle()
    assert not [client for client in clients if client.transport.producerState == "paused"]
    # Whoever reads on waits again, and everybody gets to the end.
    for client in clients:
        await client.send(bytes(100_000))
        await client.send(bytes(200_000 - 165_536))
        assert statuses(client.answer) == [200]


async def test_large_body_that_waits_for_its_turn_and_is_dropped_leaves_the_line() -> None:
    server = LocalServer()
    clients = [server.connect() for _ in range(BODIES_PER_TURN + 1)]
    for client in clients:
        client.connection.dataReceived(HEAD + b"Content-Length: 200000\r\n\r\n" + bytes(65_536))
    later(clients[-1], 300)
    assert statuses(clients[-1].answer) == [408]
    assert clients[-1].transport.producerState == "producing"
    for client in clients:
        client.leave()
    await clients[0].settle()
    assert server.body_turns.is_idle


async def test_few_bodies_in_many_chunks_are_decoded_in_one_turn_of_the_loop() -> None:
    server = LocalServer()
    clients = [server.connect() for _ in range(BODIES_PER_TURN * 2)]
    tiny = b"1\r\nx\r\n" * 10_000
    for client in clients:
        client.connection.dataReceived(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + tiny)
    assert [statuses(client.answer) for client in clients] == [[400]] * BODIES_PER_TURN + [[]] * BODIES_PER_TURN
    await clients[0].settle()
    assert [statuses(client.answer) for client in clients] == [[400]] * len(clients)
    assert server.events == ["wasteful_body"] * len(clients)
    for client in clients:
        client.leave()
    await clients[0].settle()
    assert server.body_turns.is_idle


async def test_chunked_body_that_waited_for_its_turn_is_read_as_it_was_sent() -> None:
    server = LocalServer()
    large = [server.connect() for _ in range(BODIES_PER_TURN)]
    for client in large:
        client.connection.dataReceived(HEAD + b"Content-Length: 200000\r\n\r\n" + bytes(65_536))
    client, content = server.connect(), "x" * 300_000
    chunks = f"{len(content):x}\r\n{content}\r\n0\r\n\r\n".encode()
    client.connection.dataReceived(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks[:200_000])
    assert client.transport.producerState == "paused"
    client.connection.dataReceived(chunks[200_000:] + b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
    await client.settle()
    assert statuses(client.answer) == [200, 200]
    assert content in client.answer.decode()


async def test_head_that_comes_byte_by_byte_is_read_in_linear_time() -> None:
    """A head of 16 KiB, a byte at a time: it was searched from its beginning at every byte."""
    client = LocalServer().connect()
    head = HEAD + b"A: " + b"b" * 15_000
    begun = time.process_time()
    for byte in head:
        client.connection.dataReceived(bytes([byte]))
    assert time.process_time() - begun < 0.8
    await client.send(b"\r\n\r\n")
    assert statuses(client.answer) == [200]


async def test_drain_closes_idle_connections_and_lets_a_request_finish() -> None:
    released = asyncio.Event()

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await released.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    server = LocalServer(wait)
    busy, arriving, new = server.connect(), server.connect(), server.connect()
    await busy.send(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n")
    await arriving.send(b"GET /wait HT")
    server.drain()
    later(arriving, 1)
    later(new, 1)
    assert (busy.is_closed, arriving.is_closed, new.is_closed) == (False, True, True)
    released.set()
    await busy.settle()
    assert b"connection: close" in busy.answer
    assert busy.is_closed


async def test_drain_of_a_process_that_was_replaced_takes_the_request_that_is_on_its_way() -> None:
    server = LocalServer(has_successor=True)
    busy, idle = server.connect(), server.connect()
    for client in (busy, idle):
        await client.send(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
    server.drain()
    assert not busy.is_closed
    assert not idle.is_closed
    await busy.send(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
    assert statuses(busy.answer) == [200, 200]
    assert b"connection: close" in busy.answer.lower()
    assert busy.is_closed
    later(idle, 1)
    assert idle.is_closed


async def test_drain_of_a_process_that_was_replaced_takes_a_request_after_a_response_that_had_begun() -> None:
    released = asyncio.Event()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await released.wait()
        await send({"type": "http.response.body", "body": b"done"})

    server = LocalServer(stream, has_successor=True)
    client = server.connect()
    await client.send(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
    server.drain()
    released.set()
    await client.settle()
    assert b"done" in client.answer
    assert b"connection: close" not in client.answer
    assert not client.is_closed
    await client.send(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
    await client.settle()
    assert statuses(client.answer) == [200, 200]
    assert b"connection: close" in client.answer
    assert client.is_closed


async def test_drain_leaves_idle_connections_of_other_machines_to_them_for_a_while() -> None:
    server = LocalServer(has_successor=True, peer_port=80)
    used, unused = server.connect(), server.connect()
    for client in (used, unused):
        await client.send(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
    server.drain()
    for client in (used, unused):
        later(client, DRAIN_ALLOWANCE_SECONDS + 1)
        assert not client.is_closed
    await used.send(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
    assert statuses(used.answer) == [200, 200]
    assert used.is_closed
    later(unused, PEER_ALLOWANCE_SECONDS + 1)
    assert unused.is_closed


async def test_connection_that_was_given_between_two_requests_has_the_time_of_an_idle_one() -> None:
    server = LocalServer()
    client = server.connect(was_idle=True)
    later(client, LIMITS.header_timeout_seconds + 1)
    assert not client.is_closed
    later(client, LIMITS.keep_alive_seconds + 1)
    assert client.is_closed
    assert server.events == []
