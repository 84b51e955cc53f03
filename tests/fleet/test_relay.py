"""What a process believes of a request that another one has passed on, and what it does not."""

from typing import Any

import pytest

from gateway.fleet.ownership import Route
from gateway.fleet.relay import RelayingApplication
from gateway.fleet.signatures import Signatures

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
        self.application = RelayingApplication(
            self._serve, lambda key, is_from_node=False: self.route, peer_port=PEER_PORT, signatures=self.signatures
        )

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
        await self.application(scope, None, send)  # type: ignore[arg-type]


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
