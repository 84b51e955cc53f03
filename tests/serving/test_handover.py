"""Connections that one process gives to another: who has them afterwards, and what becomes of their bytes."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.serving.handover import MAX_BYTES, Handover
from gateway.serving.head import RequestHead, parse_head

HEAD = parse_head(b"GET /notes/ada HTTP/1.1\r\nhost: a", 10)


class Ends:
    """Two processes, and a connection that the first one has accepted."""

    def __init__(self, folder: Path) -> None:
        self.owner: str | None = str(folder / "second")
        self.given = 0
        self.first = Handover(folder / "first", self._find_owner, self._count, successor=folder / "second")
        self.second = Handover(folder / "second", lambda head, host: None)
        self.client, self.accepted = socket.socketpair()
        self.taken: asyncio.Queue[tuple[socket.socket, bytes]] = asyncio.Queue()

    def _find_owner(self, head: RequestHead, host: tuple[str, int] | None) -> str | None:
        return self.owner

    def _count(self) -> None:
        self.given += 1

    def listen(self) -> None:
        self.second.listen(asyncio.get_running_loop(), lambda *taken: self.taken.put_nowait(taken))

    async def close_taken(self, count: int) -> None:
        """Wait until so many more have been taken."""
        for _ in range(count):
            async with asyncio.timeout(5):
                connection, _ = await self.taken.get()
            connection.close()

    def give(self, data: bytes) -> bool:
        return self.first.give(self.accepted, HEAD, None, data)


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path)
    yield made
    made.first.close()
    made.second.close()
    made.client.close()
    made.accepted.close()


async def test_connection_goes_on_in_the_other_process_with_what_was_read(ends: Ends) -> None:
    ends.listen()
    assert ends.give(b"GET /notes")
    ends.accepted.close()
    async with asyncio.timeout(5):
        connection, data = await ends.taken.get()
    with connection:
        assert data == b"GET /notes"
        assert not connection.get_inheritable()
        connection.sendall(b"answer")
        assert ends.client.recv(10) == b"answer"
    assert ends.given == 1


async def test_connection_stays_where_nobody_takes_it(ends: Ends) -> None:
    assert not ends.give(b"GET")
    assert ends.given == 0


async def test_connection_stays_with_its_owner_and_with_a_request_that_is_long(ends: Ends) -> None:
    ends.listen()
    assert not ends.give(b"x" * (MAX_BYTES + 1))
    ends.owner = None
    assert not ends.give(b"GET")


async def test_more_connections_than_the_system_keeps_stay(ends: Ends) -> None:
    ends.listen()
    given = 0
    while given < 10_000 and ends.give(b"GET"):
        given += 1
    assert 0 < given < 10_000
    await ends.close_taken(given)


async def test_connections_that_wait_are_taken_before_the_end(ends: Ends) -> None:
    ends.listen()
    assert ends.give(b"GET")
    ends.second.close()
    connection, _ = ends.taken.get_nowait()
    connection.close()
    assert not ends.give(b"GET")


async def test_idle_connection_goes_on_in_the_successor(ends: Ends) -> None:
    assert not ends.first.give_to_successor(ends.accepted)
    ends.listen()
    ends.first.stop_taking()
    assert ends.first.give_to_successor(ends.accepted)
    ends.client.sendall(b"GET")
    async with asyncio.timeout(5):
        connection, data = await ends.taken.get()
    with connection:
        assert (data, connection.recv(10)) == (b"", b"GET")
    assert ends.given == 0


async def test_successor_that_has_yet_to_take_others_is_tried_again(ends: Ends) -> None:
    ends.listen()
    given = 0

    def give_all() -> None:
        nonlocal given
        while ends.first.give_to_successor(ends.accepted):
            given += 1

    with pytest.raises(BlockingIOError):
        give_all()
    await ends.close_taken(given)
    assert ends.first.give_to_successor(ends.accepted)
    await ends.close_taken(1)


async def test_client_that_leaves_while_its_connection_is_given_is_no_error(
    ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tried: asyncio.Queue[socket.socket] = asyncio.Queue()

    def take(connection: socket.socket, data: bytes) -> None:
        tried.put_nowait(connection)
        connection.getpeername()

    with accepted:
        ends.second.listen(asyncio.get_running_loop(), take)
        assert ends.first.give(accepted, HEAD, None, b"GET")
        async with asyncio.timeout(5):
            connection = await tried.get()
    assert connection.fileno() == -1
    assert not caplog.records
