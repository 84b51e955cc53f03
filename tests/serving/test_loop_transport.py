"""Connections on the event loop's own transports, over TCP on this machine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager

import pytest
import uvloop
from twisted.internet import tcp, unix
from twisted.internet.protocol import Factory, Protocol

from gateway.serving.loop_transport import PAUSE_BYTES, LoopTransport, serve_on_loop

SECONDS = 10.0


class Connection:
    """Notes what its transport tells it."""

    def __init__(self) -> None:
        self.received = b""
        self.is_paused = False
        self.is_lost = False

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def pauseProducing(self) -> None:
        self.is_paused = True

    def resumeProducing(self) -> None:
        self.is_paused = False

    def connectionLost(self, reason: object) -> None:
        self.is_lost = True


@contextmanager
def connected() -> Iterator[tuple[Connection, LoopTransport, socket.socket]]:
    """A connection, its transport and its client, which does not block."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        accepted.setblocking(False)
        client.setblocking(False)
        connection = Connection()
        yield connection, LoopTransport(asyncio.get_running_loop(), accepted, connection), client


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def read_all(client: socket.socket) -> bytes:
    """What comes until the end."""
    received = b""
    async with asyncio.timeout(SECONDS):
        while data := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
            received += data
    return received


async def test_bytes_go_both_ways_and_all_arrive_before_the_end() -> None:
    with connected() as (connection, transport, client):
        client.sendall(b"question")
        await until(lambda: connection.received == b"question")
        transport.write(b"x" * 3_000_000)
        transport.loseWriteConnection()
        transport.write(b"too late")
        assert await read_all(client) == b"x" * 3_000_000
        client.close()
        await until(lambda: connection.is_lost)


async def test_connection_is_paused_while_its_client_does_not_read() -> None:
    with connected() as (connection, transport, client):
        client.sendall(b"?")
        await until(lambda: connection.received == b"?")
        while not connection.is_paused:
            transport.write(b"x" * 100_000)
        assert transport.held_bytes > PAUSE_BYTES
        while connection.is_paused:
            await asyncio.get_running_loop().sock_recv(client, 1 << 20)
        assert transport.held_bytes == 0
        transport.loseConnection()
        await until(lambda: connection.is_lost)


async def test_rest_arrives_whole_though_the_client_sends_more_while_it_is_sent() -> None:
    with connected() as (connection, transport, client):
        client.sendall(b"question")
        await until(lambda: connection.received == b"question")
        transport.write(b"x" * 8_000_000)
        transport.loseConnection()
        transport.write(b"too late")
        client.sendall(b"another")
        await until(lambda: connection.received == b"questionanother")
        assert await read_all(client) == b"x" * 8_000_000
        await until(lambda: connection.is_lost)


async def test_connection_that_is_let_go_goes_on_where_there_is_a_copy_of_its_socket() -> None:
    with connected() as (connection, transport, client):
        client.sendall(b"question")
        await until(lambda: connection.received == b"question")
        with transport.socket.dup() as copy:
            transport.let_go()
            await until(lambda: connection.is_lost)
            client.sendall(b"another")
            assert await asyncio.get_running_loop().sock_recv(copy, 100) == b"another"
            copy.sendall(b"answer")
            assert await asyncio.get_running_loop().sock_recv(client, 100) == b"answer"
        assert connection.received == b"question"


async def test_connection_begins_with_what_was_read_before() -> None:
    with connected() as (connection, transport, client):
        client.sendall(b" and more")
        transport.begin_with(b"question")
        await until(lambda: connection.received == b"question and more")
        client.close()
        await until(lambda: connection.is_lost)


async def test_client_that_has_closed_its_side_has_left() -> None:
    with connected() as (connection, transport, client):
        client.shutdown(socket.SHUT_WR)
        await until(lambda: connection.is_lost)
        transport.write(b"nobody reads it")
        transport.abortConnection()


async def test_aborted_connection_is_reset_though_the_loop_has_not_taken_it_yet() -> None:
    with connected() as (connection, transport, client):
        transport.abortConnection()
        await until(lambda: connection.is_lost)
        try:
            end: object = await asyncio.get_running_loop().sock_recv(client, 1)
        except ConnectionResetError as error:
            end = error
        assert isinstance(end, ConnectionResetError)


async def test_only_plain_tcp_is_carried_by_the_loop() -> None:
    loop = asyncio.get_running_loop()
    served, other = Protocol(), Protocol()
    port = tcp.Port(0, Factory())
    serve_on_loop(port, loop, lambda protocol: protocol is served)
    with connected() as (connection, first, _), socket.socket() as second:
        assert port.transport is not tcp.Server
        assert isinstance(port.transport(second, other, ("127.0.0.1", 1), port, 1, None), tcp.Server)
        first.abortConnection()
        await until(lambda: connection.is_lost)
    for_unix = unix.Port("unused", Factory())
    serve_on_loop(for_unix, loop, lambda protocol: True)
    assert for_unix.transport is unix.Server


@pytest.mark.parametrize(
    "outcome",
    [
        test_bytes_go_both_ways_and_all_arrive_before_the_end,
        test_connection_is_paused_while_its_client_does_not_read,
        test_rest_arrives_whole_though_the_client_sends_more_while_it_is_sent,
        test_client_that_has_closed_its_side_has_left,
        test_aborted_connection_is_reset_though_the_loop_has_not_taken_it_yet,
    ],
)
def test_outcome_is_the_same_on_uvloop(outcome: Callable[[], Coroutine[None, None, None]]) -> None:
    uvloop.run(outcome())
