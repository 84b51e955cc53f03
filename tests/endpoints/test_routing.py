"""What answers a path: OAuth requests that clients make before they connect, methods, and the metrics they leave."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from django.core.asgi import get_asgi_application
from django.test import override_settings
from prometheus_client import REGISTRY

from gateway import metrics
from tests.support.in_process import InProcessHost, host_in_process
from tests.support.processes import ROOT
from tests.support.server_folders import WriteServer
from tests.support.streamable import initialize_message

LEDGER = "/ledger/ada:key"

OAUTH_TARGETS = [
    "/.well-known/oauth-protected-resource",
    "/.well-known/oauth-protected-resource/ledger/ada:key",
    "/.well-known/oauth-authorization-server",
    "/.well-known/oauth-authorization-server/ledger/ada:key",
    "/.well-known/openid-configuration",
    "/ledger/ada:key/.well-known/openid-configuration",
    "/ledger/.well-known/oauth-authorization-server",
    "/.well-known/mcp.json",
    "/register",
    "/authorize?response_type=code&client_id=x",
    "/token",
]


@asynccontextmanager
async def ledger() -> AsyncIterator[InProcessHost]:
    async with host_in_process(ROOT / "tests" / "servers" / "eras", get_asgi_application()) as host:
        yield host


def refusals() -> dict[str, float]:
    """What the host has counted as refused, by reason."""
    return {reason: metrics.refused_requests.labels(reason)._value.get() for reason in metrics.REFUSAL_REASONS}


@pytest.mark.parametrize("auth", ["open", "keys"])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
async def test_oauth_requests_get_a_json_404_and_count_as_nothing(auth: str, method: str) -> None:
    with override_settings(GUMCP_AUTH=auth):
        async with ledger() as host:
            authenticator = host.host.doorkeeper.authenticator
            before = refusals()
            for _ in range(10):
                for target in OAUTH_TARGETS:
                    reply = await host.request(method, target, b"{}" if method == "POST" else b"")
                    assert (reply.status, reply.headers["content-type"]) == (404, "application/json")
                    assert "OAuth" in reply.json["error"]
            assert refusals() == before
            assert not authenticator.limits.take_refusals()


@override_settings(GUMCP_ALLOWED_ORIGINS=["https://inspector.example.com"])
async def test_web_page_of_an_allowed_origin_can_read_the_404() -> None:
    async with ledger() as host:
        reply = await host.request("GET", OAUTH_TARGETS[0], headers={"Origin": "https://inspector.example.com"})
        assert reply.headers["access-control-allow-origin"] == "https://inspector.example.com"


@override_settings(GUMCP_AUTH="keys")
async def test_server_may_have_the_name_of_an_oauth_path(write_server: WriteServer) -> None:
    async with host_in_process(write_server("register")) as host:
        assert (await host.post("/register", initialize_message()).reply()).status == 401
        assert (await host.post("/token", initialize_message()).reply()).status == 404


@pytest.mark.parametrize("target", ["/", "/admin/", "/static/x.css", "/metrics/x", "/robots.txt"])
@pytest.mark.parametrize("method", ["BREW", "get", "PROPFIND", "TRACE", "CONNECT", "A" * 200])
async def test_method_that_django_does_not_implement_does_not_reach_it(target: str, method: str) -> None:
    async with host_in_process(ROOT / "tests" / "servers" / "eras") as host:
        reply = await host.request(method, target)
        assert (reply.status, reply.headers["content-type"]) == (501, "application/json")


def series() -> set[tuple[str, str]]:
    """The time series of this process: name and labels."""
    return {
        (sample.name, json.dumps(sample.labels, sort_keys=True))
        for family in REGISTRY.collect()
        for sample in family.samples
    }


def inventions(number: int) -> Iterator[tuple[str, str, bytes, dict[str, str]]]:
    """Requests in which everything is invented that a client may invent."""
    word = f"invented{number}"
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": word, "arguments": {word: word}}}
    stateless = {
        **call,
        "params": {
            **call["params"],
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        },
    }
    accept = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    modern = {**accept, "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": word}
    targets = ["/", "/admin/", "/admin/login/", f"/static/{word}", f"/metrics/{word}", f"/{word}", f"/{word}/ada:key"]
    for target in [*targets, LEDGER, f"{LEDGER}/messages/", f"/.well-known/{word}", f"/ledger/{word}"]:
        for method in (f"INVENTED{number}", "GET", "POST", "DELETE"):
            yield method, target, b"", {"X-Forwarded-Proto": word, "Origin": f"http://{word}", "User-Agent": word}
            yield method, target, json.dumps(call).encode(), {**accept, "MCP-Protocol-Version": word}
    yield (
        "POST",
        LEDGER,
        json.dumps(initialize_message(version=word, clientInfo={"name": word, "version": word})).encode(),
        accept,
    )
    yield "POST", LEDGER, json.dumps(stateless).encode(), modern
    yield "POST", LEDGER, json.dumps({**stateless, "method": word}).encode(), {**modern, "Mcp-Method": word}
    yield "GET", "/", b"", {"Host": f"{word}.example.com"}
    yield "GET", "/", b"", {"Content-Type": f"{word}/{word}; charset={word}", "Content-Length": "0"}


@pytest.mark.django_db
async def test_no_label_of_a_metric_comes_from_a_request() -> None:
    async with ledger() as host:

        async def send_inventions(number: int) -> None:
            for method, target, body, headers in inventions(number):
                exchange = host.open(method, target, body, headers)
                await exchange.status()
                exchange.leave()

        await send_inventions(0)  # known methods, views and reasons make their series once
        before = series()
        for number in range(1, 3):
            await send_inventions(number)
        assert series() - before == set()


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/ledger/ada:key", "GET, POST, DELETE"),
        ("/ledger/ada:key/", "GET, POST, DELETE"),
        ("/ledger/ada:k%2Fey", "GET, POST, DELETE"),
        ("/ledger/messages", "GET, POST, DELETE"),
        ("/ledger/ada:key/messages", "POST"),
        ("/ledger/ada:key/messages/", "POST"),
        ("/ledger", None),
        ("/ledger/", None),
        ("/ledger/ada:key//", None),
        ("/ledger//messages", None),
        ("/ledger/ada:key/others", None),
        ("/ledger/ada:key/messages/more", None),
    ],
)
async def test_session_url_and_messages_url_are_told_apart_by_their_segments(path: str, methods: str | None) -> None:
    with override_settings(GUMCP_AUTH="open"):
        async with ledger() as host:
            reply = await host.request("PUT", path)
    if methods is None:
        assert reply.status == 404
    else:
        assert (reply.status, reply.headers["allow"]) == (405, methods)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/ledger", 401), ("/ledger/", 401), ("/ledger/messages/", 401), ("/ledger/ada/messages", 401), ("/a/b/c", 404)],
)
async def test_url_needs_no_session_key_where_keys_are_checked(path: str, status: int) -> None:
    with override_settings(GUMCP_AUTH="keys"):
        async with ledger() as host:
            assert (await host.request("POST", path, b"{}")).status == status
