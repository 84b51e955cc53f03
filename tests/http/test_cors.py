from typing import Any

import pytest

from gateway.http.cors import CLIENT_HEADERS, MAX_REQUESTED_BYTES, CrossOriginAccess
from gateway.http.origins import OriginPolicy
from gateway.http.responses import respond

PAGE = "https://app.example.com"
PREFLIGHT = {"access_control_request_method": "POST"}
ALL_CLIENT_HEADERS = b", ".join(CLIENT_HEADERS)


class Route:
    """An ASGI application that answers 401 and keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls.append((scope, receive, send))
        await respond(send, 401, b"{}", b"application/json", [(b"www-authenticate", b"Bearer")])


class Caller:
    """The route's other end."""

    def __init__(self, *allowed_origins: str, allowed_headers: tuple[str, ...] = ()) -> None:
        self.route = Route()
        self.sent: list[Any] = []
        policy = OriginPolicy(["mcp.example.com"], allowed_origins or [PAGE], allowed_headers)
        self._access = CrossOriginAccess(self.route, policy, b"GET, POST, DELETE")

    async def call(
        self, method: str, headers: list[tuple[bytes, bytes]], host: str = "mcp.example.com"
    ) -> list[tuple[bytes, bytes]]:
        """Make a request and return the headers of its answer."""
        scope = {"type": "http", "method": method, "headers": [(b"host", host.encode()), *headers]}
        await self._access(scope, self.receive, self.send)
        return list(self.sent[-2]["headers"])

    async def receive(self) -> Any:
        raise AssertionError("nothing reads the body")

    async def send(self, message: Any) -> None:
        self.sent.append(message)


def fields(**headers: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]


async def allowed_headers(*requested: str, more: tuple[str, ...] = ()) -> bytes:
    """What a preflight that asks for these header lines is allowed, by a host that allows `more` than MCP needs."""
    lines = [(b"access-control-request-headers", line.encode("latin-1")) for line in requested]
    answer = await (caller := Caller(allowed_headers=more)).call("OPTIONS", [*fields(origin=PAGE, **PREFLIGHT), *lines])
    assert caller.sent[0]["status"] == 204
    return dict(answer)[b"access-control-allow-headers"]


async def test_preflight_of_an_allowed_origin_is_answered_before_the_route() -> None:
    caller = Caller()
    answer = await caller.call("OPTIONS", fields(origin=PAGE, **PREFLIGHT))
    assert caller.route.calls == []
    assert [message["type"] for message in caller.sent] == ["http.response.start", "http.response.body"]
    assert (caller.sent[0]["status"], caller.sent[1]) == (204, {"type": "http.response.body", "body": b""})
    assert len(dict(answer)) == len(answer)
    assert {name: value for name, value in answer if name not in (b"cache-control", b"x-content-type-options")} == {
        b"access-control-allow-origin": PAGE.encode(),
        b"access-control-allow-methods": b"GET, POST, DELETE",
        b"access-control-allow-headers": ALL_CLIENT_HEADERS,
        b"access-control-max-age": b"7200",
        b"vary": b"Origin",
    }


async def test_answer_to_an_allowed_origin_can_be_read() -> None:
    answer = dict(await Caller().call("POST", fields(origin=PAGE)))
    assert answer[b"access-control-allow-origin"] == PAGE.encode()
    assert answer[b"access-control-expose-headers"] == b"Mcp-Session-Id, WWW-Authenticate, Retry-After"
    assert answer[b"vary"] == b"Origin"
    assert answer[b"www-authenticate"] == b"Bearer"
    assert b"access-control-allow-credentials" not in answer


async def test_options_without_a_requested_method_is_no_preflight() -> None:
    caller = Caller()
    assert dict(await caller.call("OPTIONS", fields(origin=PAGE)))[b"access-control-allow-origin"] == PAGE.encode()
    assert len(caller.route.calls) == 1


@pytest.mark.parametrize("origin", ["http://mcp.example.com", "https://mcp.example.com"])
async def test_hosts_own_origin_is_an_allowed_one(origin: str) -> None:
    assert dict(await Caller().call("POST", fields(origin=origin)))[b"access-control-allow-origin"] == origin.encode()


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    "headers",
    [
        fields(),
        fields(origin=""),
        fields(origin="null"),
        fields(origin="*"),
        fields(origin="https://evil.example"),
        fields(origin="http://app.example.com"),
        fields(origin="https://app.example.com:8443"),
        fields(origin="https://app.example.com/"),
        fields(origin="https://app.example.com.evil.example"),
        fields(origin="https://mcp.example.com/page"),
        fields(origin="https://mcp.example.com\r\nset-cookie: a=b"),
        fields(origin="https://user@mcp.example.com"),
        fields(origin=f"{PAGE} {PAGE}"),
        [*fields(origin=PAGE), *fields(origin=PAGE)],
        [*fields(origin=PAGE), *fields(host="mcp.example.com")],
    ],
    ids=repr,
)
async def test_anybody_else_gets_the_route_as_it_is(method: str, headers: list[tuple[bytes, bytes]]) -> None:
    caller = Caller()
    await caller.call(method, [*headers, *fields(**PREFLIGHT)])
    [(_, receive, send)] = caller.route.calls
    assert (receive, send) == (caller.receive, caller.send)


async def test_page_that_calls_under_a_foreign_name_gets_the_route_as_it_is() -> None:
    caller = Caller()
    await caller.call("OPTIONS", fields(origin=PAGE, **PREFLIGHT), host="evil.example")
    assert caller.route.calls[0][2] == caller.send


async def test_wildcard_among_the_origins_allows_nobody() -> None:
    caller = Caller("*")
    for origin in ("*", PAGE):
        await caller.call("POST", fields(origin=origin))
    assert [send for _, _, send in caller.route.calls] == [caller.send, caller.send]


@pytest.mark.parametrize(
    ("requested", "allowed"),
    [
        ("authorization,content-type", b"authorization, content-type"),
        ("Authorization , \tMcp-Session-Id", b"authorization, mcp-session-id"),
        ("mcp-protocol-version,mcp-method,mcp-name", b"mcp-protocol-version, mcp-method, mcp-name"),
        ("content-type,mcp-param-region,mcp-param-x_1.!#$%&'*+^`|~", None),
        ("accept,last-event-id", b"accept, last-event-id"),
    ],
)
async def test_headers_that_mcp_clients_send_are_allowed(requested: str, allowed: bytes | None) -> None:
    expected = allowed or requested.encode().replace(b",", b", ")
    assert await allowed_headers(requested) == expected
    assert await allowed_headers(*requested.split(",")) == expected


@pytest.mark.parametrize(
    "requested",
    [
        "",
        ",",
        "authorization,,content-type",
        "*",
        "cookie",
        "x-evil",
        "authorization,x-evil",
        "mcp-",
        "mcp-param-a b",
        "mcp-param-a:b",
        "mcp-param-a;q=1",
        'mcp-param-"a"',
        "mcp-param-é",
        "mcp-param-a\x00",
        "mcp-param-a\r\nset-cookie: a=b",
        "mcp-param-a\n",
        "authorization\n",
        f"mcp-param-{'a' * MAX_REQUESTED_BYTES}",
        ",".join(["accept"] * MAX_REQUESTED_BYTES),
    ],
    ids=lambda requested: requested[:40],
)
async def test_any_other_requested_header_is_not_repeated(requested: str) -> None:
    assert await allowed_headers(requested) == ALL_CLIENT_HEADERS
    assert await allowed_headers("authorization", requested) == ALL_CLIENT_HEADERS


async def test_headers_that_an_operator_allows_are_allowed_beside_those_of_mcp() -> None:
    more = ("x-api-key", "x-request-id")
    assert await allowed_headers("X-Api-Key,Authorization", more=more) == b"x-api-key, authorization"
    assert await allowed_headers("x-other", more=more) == ALL_CLIENT_HEADERS + b", x-api-key, x-request-id"


async def test_any_header_can_be_allowed_but_nothing_that_is_not_one() -> None:
    assert await allowed_headers("x-whatever,authorization", more=("*",)) == b"x-whatever, authorization"
    assert await allowed_headers("x-a\r\nset-cookie: a=b", more=("*",)) == ALL_CLIENT_HEADERS


async def test_longest_list_of_requested_headers_is_allowed_in_full() -> None:
    name = "mcp-param-".ljust(MAX_REQUESTED_BYTES, "a")
    assert await allowed_headers(name) == name.encode()
