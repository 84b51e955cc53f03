"""The server behind the metrics port: what it answers and what its clients can cost."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from gateway.serving import small_server
from gateway.serving.small_server import CONNECTIONS, SmallServer

WAIT_SECONDS = 10.0


class Page:
    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        if scope["path"] == "/fails":
            raise RuntimeError("failed")
        size = int(scope["query_string"] or b"5")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"x" * size})


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def port(page: Page) -> Iterator[int]:
    server = SmallServer(page, "127.0.0.1", 0)
    yield server.start()
    server.stop()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), WAIT_SECONDS)


def read_to_end(connection: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionResetError):
        while received := connection.recv(65536):
            data += received
    return data


def answer(port: int, request: bytes) -> bytes:
    with connect(port) as connection:
        connection.sendall(request)
        return read_to_end(connection)


GET = b"GET /page HTTP/1.1\r\nHost: h\r\n\r\n"


def test_page_is_answered_and_the_connection_closed(port: int) -> None:
    head, _, body = answer(port, GET).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nconnection: close" in head
    assert b"\r\ncontent-length: 5" in head
    assert body == b"xxxxx"


def test_head_has_the_length_and_no_body(port: int) -> None:
    head, _, body = answer(port, GET.replace(b"GET", b"HEAD")).partition(b"\r\n\r\n")
    assert b"\r\ncontent-length: 5" in head
    assert body == b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /page HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", 405),
        (b"GET /page HTTP/1.1\r\n\r\n", 400),
        (b"GET /page\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET /page HTTP/1.1\r\nHost: h\r\nA: " + b"b" * 100_000, 431),
    ],
)
def test_other_requests_are_refused(port: int, page: Page, request_: bytes, status: int) -> None:
    assert answer(port, request_)[9:12] == b"%d" % status
    assert page.asked == []


def test_failure_of_the_page_is_a_500_and_the_next_request_goes_well(port: int) -> None:
    assert answer(port, GET.replace(b"/page", b"/fails"))[9:12] == b"500"
    assert answer(port, GET)[9:12] == b"200"


def test_oldest_connection_makes_room_for_one_more_and_none_takes_a_thread(port: int) -> None:
    """Each connection had a thread of its own, for as long as its client liked."""
    before = threading.active_count()
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(port)) for _ in range(CONNECTIONS)]
        for connection in silent:
            connection.sendall(b"GET /pa")
        assert answer(port, GET)[9:12] == b"200"
        assert read_to_end(silent[0]) == b""
        silent[-1].sendall(GET[7:])
        assert read_to_end(silent[-1])[9:12] == b"200"
        assert threading.active_count() == before


@pytest.mark.parametrize("sent", [b"", b"GET /page HT", GET.replace(b"/page", b"/page?30000000")])
def test_client_that_does_not_finish_is_cut(page: Page, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(small_server, "CONNECTION_SECONDS", 0.3)
    server = SmallServer(page, "127.0.0.1", 0)
    port = server.start()
    with connect(port) as connection:
        connection.sendall(sent)
        threading.Event().wait(0.6)
        assert len(read_to_end(connection)) < 30_000_000
        assert answer(port, GET)[9:12] == b"200"
    server.stop()


def test_stopped_server_lets_the_port_go(page: Page) -> None:
    server = SmallServer(page, "127.0.0.1", 0)
    port = server.start()
    with connect(port) as connection:
        server.stop()
        assert read_to_end(connection) == b""
    again = SmallServer(page, "127.0.0.1", port)
    assert again.start() == port
    again.stop()


def test_port_in_use_is_an_error(page: Page, port: int) -> None:
    with pytest.raises(OSError, match="in use"):
        SmallServer(page, "127.0.0.1", port).start()


@pytest.mark.parametrize("said", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: h\r\n"])
@pytest.mark.parametrize("resets", [True, False])
def test_client_that_leaves_before_its_request_is_whole_is_no_error(
    port: int, page: Page, caplog: pytest.LogCaptureFixture, said: bytes, resets: bool
) -> None:
    connection = connect(port)
    connection.sendall(said)
    if resets:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    else:
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection) == b""
        connection.close()
    assert answer(port, b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert not caplog.records
