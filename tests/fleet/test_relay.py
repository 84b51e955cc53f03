"""What a process believes of a request that another one has passed on, and what it does not."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.fleet.ownership import Route
from gateway.fleet.relay import LINK_SECONDS, RelayingApplication, _silence
from gateway.fleet.signatures import Signatures
from tests.support.deadlines import WAIT_SECONDS
from tests.support.processes import until

PEER_PORT = 8100
CLIENT = [(b"x-gumcp-client", b"203.0.113.9 4711"), (b"x-gumcp-scheme", b"https")]
PARTS = (b"POST", b"/notes/ada:key?a=b", b"203.0.113.9 4711", b"https", b"notes/key")


class Asked:
    """The scopes that reach the host, and the statuses that are sent."""

    def __init__(self, route: Route | None = None) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.route = route
        self.signatures = Signatures("secret")
        self.refusals = 0
        self.application = RelayingApplication(
            self._serve,
            lambda key, is_from_node=False: self.route,
            peer_port=PEER_PORT,
            signatures=self.signatures,
            on_node_refuses=self._count_refusal,
        )

    def _count_refusal(self) -> None:
        self.refusals += 1

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.statuses.append(200)

    async def ask(
        self, *headers: tuple[bytes, bytes], port: int = PEER_PORT, client: tuple[str, int] | None = ("10.0.0.2", 1)
    ) -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.statuses.append(message["status"])

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/notes/ada:key",
            "raw_path": b"/notes/ada:key",
            "query_string": b"a=b",
            "headers": list(headers),
            "client": client,
            "server": None if client is None else ("10.0.0.1", port),
            "scheme": "http",
        }
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if not messages:
                await asyncio.Event().wait()
            return messages.pop()

        await self.application(scope, receive, send)


@pytest.fixture
def asked() -> Asked:
    return Asked()


def signature(by: str = "secret") -> tuple[bytes, bytes]:
    return b"x-gumcp-signature", Signatures(by).sign(*PARTS)


async def test_signed_request_is_served_once_as_the_client_sent_it(asked: Asked) -> None:
    signed = signature()
    await asked.ask(*CLIENT, signed, (b"accept", b"*/*"))
    await asked.ask(*CLIENT, signed, (b"accept", b"*/*"))
    assert asked.statuses == [200, 403]
    (scope,) = asked.scopes
    assert (scope["client"], scope["scheme"], scope["server"]) == (("203.0.113.9", 4711), "https", None)
    assert scope["headers"] == [(b"accept", b"*/*")]


@pytest.mark.parametrize(
    "headers",
    [
        CLIENT,
        [*CLIENT, signature("other")],
        [(b"x-gumcp-client", b"203.0.113.10 1"), CLIENT[1], signature()],
        [*CLIENT, signature(), (b"authorization", b"Bearer other")],
    ],
    ids=["no signature", "another secret", "another client", "another key"],
)
async def test_request_on_the_peer_port_that_no_node_has_signed_so_is_refused(
    asked: Asked, headers: list[tuple[bytes, bytes]]
) -> None:
    await asked.ask(*headers)
    assert asked.statuses == [403]


async def test_client_cannot_say_who_it_is(asked: Asked) -> None:
    await asked.ask(*CLIENT, signature(), port=8000)
    (scope,) = asked.scopes
    assert (scope["client"], scope["scheme"], scope["headers"]) == (("10.0.0.2", 1), "http", [])


async def test_signature_that_came_by_another_worker_is_used_once_here(asked: Asked) -> None:
    signed = signature()
    for _ in range(2):
        await asked.ask(*CLIENT, signed, client=None)
    assert asked.statuses == [200, 403]


async def test_node_that_cannot_be_reached_is_answered_503_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.fleet.relay.NODE_HOLD_SECONDS", 0.1)
    asked = Asked(Route("127.0.0.1:1", is_node=True))
    await asked.ask(port=8000)
    assert asked.statuses == [503]
    assert asked.refusals


@contextlib.asynccontextmanager
async def node(answer: bytes) -> AsyncIterator[tuple[Route, asyncio.Queue[str]]]:
    """Another machine, which answers each request with these bytes. It tells of connections that begin and end."""
    told: asyncio.Queue[str] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.put_nowait("begin")
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
        told.put_nowait("end")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Route(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", is_node=True), told


async def test_idle_connections_to_a_node_that_has_left_are_closed() -> None:
    async with node(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok") as (route, told), asyncio.timeout(WAIT_SECONDS):
        asked = Asked(route)
        for _ in range(2):
            await asked.ask(port=8000)
        asked.application.keep_nodes({route.address})
        await asked.ask(port=8000)
        assert (asked.statuses, await told.get(), told.empty()) == ([200] * 3, "begin", True)
        asked.application.keep_nodes(set())
        assert await told.get() == "end"


async def test_link_that_is_cut_ends_a_request_that_waits_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.fleet.relay._silence", lambda link: (LINK_SECONDS, True))
    async with node(b"") as (route, told), asyncio.timeout(WAIT_SECONDS):
        asked = Asked(route)
        await asked.ask(port=8000)
        assert asked.statuses == [502]
        assert [await told.get() for _ in range(2)] == ["begin", "end"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_silence_of_a_link_ends_when_the_other_end_acknowledges_something() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as link:
        until(lambda: _silence(link)[0] >= 0.05)
        before, is_probing = _silence(link)
        link.sendall(b"x")
        assert _silence(link)[0] < before
        assert not is_probing
