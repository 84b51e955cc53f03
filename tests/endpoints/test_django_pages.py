"""Django's pages under names and with bodies that they must not have, and a host that is served under a path."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from django.core.asgi import get_asgi_application
from django.test import override_settings
from django.urls import clear_script_prefix, set_script_prefix

from gateway.endpoints.django_pages import DjangoPages
from gateway.endpoints.health import HealthEndpoint
from tests.support.in_process import Exchange, InProcessHost, host_in_process
from tests.support.processes import ROOT

LIMIT = 10_000


@asynccontextmanager
async def whole_host() -> AsyncIterator[InProcessHost]:
    """A host with Django's pages, as the ASGI application has it."""
    django = get_asgi_application()
    async with host_in_process(ROOT / "tests" / "servers" / "eras") as running:
        pages = DjangoPages(django, running.host.origin_policy, LIMIT)
        running.application._django = HealthEndpoint(running.host, pages)
        yield running


@pytest.mark.parametrize("auth", ["open", "keys"])
async def test_browser_on_a_foreign_name_is_told_what_to_set_as_an_mcp_client_is(auth: str) -> None:
    with override_settings(GUMCP_AUTH=auth):
        async with whole_host() as host:
            told = set()
            for target in ("/", "/admin/login/", "/static/admin/css/base.css", "/ledger/ada:key"):
                reply = await host.request("GET", target, headers={"Host": "nas.lan:8000", "Accept": "text/html"})
                assert reply.status == 421
                told.add(reply.json["error"])
            (text,) = told
            assert "GUMCP_ALLOWED_HOSTS" in text
            assert (await host.request("GET", "/health_check", headers={"Host": "10.0.0.7:8000"})).status == 200


async def test_login_page_is_served_under_the_hosts_own_name() -> None:
    async with whole_host() as host:
        assert b"Log in" in (await host.request("GET", "/admin/login/")).body


class Received:
    """An ASGI application that reads its body as Django does, and answers how much it got."""

    def __init__(self) -> None:
        self.bytes = 0
        self.has_answered = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            self.bytes += len(message["body"])
            if not message.get("more_body", False):
                break
        self.has_answered = True
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def post_to_page(application: Any, parts: list[bytes], headers: dict[str, str]) -> tuple[int, Any]:
    exchange = Exchange(application, "POST", "/admin/login/", headers, "127.0.0.1")
    for part in parts[:-1]:
        exchange._inbox.put_nowait({"type": "http.request", "body": part, "more_body": True})
    exchange.send_body(parts[-1])
    reply = await exchange.reply()
    return reply.status, reply.body


@pytest.mark.parametrize(
    ("parts", "headers", "status"),
    [
        ([bytes(LIMIT)], {}, 200),
        ([bytes(LIMIT)], {"Content-Length": str(LIMIT)}, 200),
        ([bytes(LIMIT + 1)], {}, 413),
        ([bytes(LIMIT + 1)], {"Content-Length": str(LIMIT + 1)}, 413),
        ([bytes(LIMIT), b"x", bytes(LIMIT)], {}, 413),
        ([bytes(1000)] * 100, {}, 413),
    ],
)
async def test_body_of_a_page_is_refused_beyond_the_limit(
    parts: list[bytes], headers: dict[str, str], status: int
) -> None:
    async with whole_host() as host:
        received = Received()
        pages = DjangoPages(received, host.host.origin_policy, LIMIT)
        answered, content = await post_to_page(pages, parts, headers)
        assert answered == status
        assert received.has_answered == (status == 200)
        assert received.bytes <= LIMIT
        assert status == 200 or json.loads(content) == {"error": f"The body is longer than {LIMIT} bytes."}


async def test_django_writes_no_body_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever ASGI server reads it. A body of any length went there under uvicorn."""

    def fail(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a temporary file was opened")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    async with whole_host() as host:
        pages = host.application._django
        statuses = [
            (await post_to_page(pages, parts, {"Content-Type": "application/octet-stream"}))[0]
            for parts in ([bytes(LIMIT)], [bytes(4000)] * 1000)
        ]
        assert statuses[1] == 413
        assert statuses[0] in (403, 429)  # Django has read it: there is no CSRF token in it


# -- A host that a proxy serves under a path


@pytest.fixture
def under_a_path() -> Any:
    with override_settings(
        GUMCP_PUBLIC_URL="http://mcp.example.com/tools", FORCE_SCRIPT_NAME="/tools", STATIC_URL="static/"
    ):
        set_script_prefix("/tools")
        yield
    clear_script_prefix()


@pytest.mark.usefixtures("under_a_path")
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
@pytest.mark.parametrize("prefix", ["", "/tools"], ids=["the proxy takes the path off", "the proxy passes it on"])
async def test_host_under_a_path_is_the_same_host(prefix: str) -> None:
    async with whole_host() as host:
        client = await host.open_sse(f"{prefix}/ledger/ada%3Akey")
        assert client.endpoint.startswith("/tools/ledger/ada%3Akey/messages/?session_id=")
        await client.initialize()
        assert (await client.request("tools/list"))["result"]["tools"]
        session = await host.initialize(f"{prefix}/ledger/ada:key")
        assert await session.delete() == 200
        for path in ("/", "/health_check", "/health_check?full=1", "/static/admin/css/base.css"):
            assert (await host.request("GET", prefix + path)).status == 200, path
        redirect = await host.request("GET", f"{prefix}/admin/")
        assert redirect.headers["Location"] == "/tools/admin/login/?next=/tools/admin/"
        assert (await host.request("GET", f"{prefix}/admin")).headers["Location"] == "/tools/admin/"
        login = await host.request("GET", f"{prefix}/admin/login/")
        assert b'href="/tools/static/admin/css/base.css"' in login.body
        assert (await host.request("GET", f"{prefix}/nothing/a/b/c")).status == 404


@pytest.mark.usefixtures("under_a_path")
async def test_path_itself_is_the_index_and_a_longer_word_is_not_below_it() -> None:
    async with whole_host() as host:
        assert (await host.request("GET", "/tools")).json["status"] == "ok"
        assert (await host.request("GET", "/toolshed/admin/")).status == 404


async def test_target_that_is_a_whole_url_is_answered() -> None:
    async with whole_host() as host:
        assert (await host.request("GET", "http://localhost/health_check")).status == 200
        client = await host.open_sse("http://localhost/ledger/ada:key")
        assert client.endpoint.startswith("/ledger/ada:key/messages/")
        assert (await host.request("GET", "http://evil.example/ledger/ada:key")).status == 421


async def test_image_of_a_foreign_page_runs_no_factory() -> None:
    """A browser sends no Origin for it, and accepts anything."""
    async with whole_host() as host:
        for site in ("cross-site", "same-site"):
            headers = {"Accept": "image/avif,*/*;q=0.8", "Sec-Fetch-Site": site, "Sec-Fetch-Dest": "image"}
            assert (await host.request("GET", "/ledger/ada", headers=headers)).status == 403
        assert len(host.host.instances) == 0
        assert len(host.host.sessions) == 0
