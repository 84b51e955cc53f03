"""Who is told which servers there are, by `/` and `/health_check`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from django.core.asgi import get_asgi_application
from django.test import override_settings

from gateway.access.authenticator import Authenticator
from gateway.access.keys import make_key
from gateway.access.limits import RateLimits
from gateway.apps import GatewayConfig
from gateway.endpoints import views
from gateway.endpoints.health import HealthEndpoint
from tests.support.in_process import InProcessHost, host_in_process
from tests.support.key_rows import Rows
from tests.support.processes import ROOT

ELSEWHERE = "192.0.2.7"
ALL = ["ledger"]

paths = pytest.mark.parametrize("path", ["/", "/health_check", "/health_check/"])


@asynccontextmanager
async def host_with_keys(
    monkeypatch: pytest.MonkeyPatch, rows: Rows, mode: str = "keys"
) -> AsyncIterator[InProcessHost]:
    """A host with Django's pages, whose keys are `rows`."""
    with override_settings(GUMCP_AUTH=mode):
        async with host_in_process(ROOT / "tests" / "servers" / "eras") as running:
            running.application._django = HealthEndpoint(running.host, get_asgi_application())
            if mode == "keys":
                authenticator = Authenticator("keys", rows, RateLimits({"failed keys": "3/hour"}))
                running.host.doorkeeper.authenticator.close()
                running.host.doorkeeper.authenticator = authenticator
            monkeypatch.setattr(GatewayConfig.current(), "host", running.host)
            yield running


async def told(host: InProcessHost, path: str, address: str = ELSEWHERE, **headers: str) -> Any:
    """The names that the caller is told; None if there are none in the answer."""
    reply = await host.request("GET", path, headers={"Host": "localhost", **headers}, address=address)
    assert reply.status == 200
    assert reply.json["status"] == "ok"
    return reply.json.get("servers")


@paths
async def test_stranger_is_told_the_status_only(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    async with host_with_keys(monkeypatch, Rows()) as host:
        assert await told(host, path) is None
        assert await told(host, path, Authorization="Bearer ") is None
        # A proxy on this machine speaks for somebody else.
        assert await told(host, path, "127.0.0.1", **{"X-Forwarded-For": ELSEWHERE}) is None
        assert await told(host, path, "127.0.0.1", Via="1.1 proxy") is None


@paths
async def test_key_is_told_the_servers_that_it_is_for(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    rows = Rows()
    keys = {
        rows.issue("ada"): ALL,
        rows.issue("ada", servers={"ledger": None}): ALL,
        rows.issue("ada", servers={"other": None}): [],
        rows.issue("ada", is_active=False): None,
        make_key(): None,
    }
    async with host_with_keys(monkeypatch, rows) as host:
        for key, names in keys.items():
            assert await told(host, path, Authorization=f"Bearer {key.text}") == names


@paths
async def test_status_is_told_with_any_key_however_many_were_wrong(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    async with host_with_keys(monkeypatch, Rows()) as host:
        for _ in range(6):
            assert await told(host, path, Authorization=f"Bearer {make_key().text}") is None
        assert host.host.doorkeeper.authenticator.limits.take_refusals()


@paths
async def test_this_machine_is_told_all(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    async with host_with_keys(monkeypatch, Rows()) as host:
        assert await told(host, path, "127.0.0.1") == ALL
        assert await told(host, path, "::1") == ALL
        assert await told(host, path, "127.0.0.1", Authorization=f"Bearer {make_key().text}") == ALL


@paths
async def test_key_is_told_its_servers_also_on_this_machine(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    rows = Rows()
    key = rows.issue("ada", servers={"other": None})
    async with host_with_keys(monkeypatch, rows) as host:
        assert await told(host, path, "127.0.0.1", Authorization=f"Bearer {key.text}") == []


@paths
async def test_staff_are_told_all_and_other_sessions_nothing(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    is_staff = True

    async def is_operator(request: Any) -> bool:
        return is_staff

    monkeypatch.setattr(views, "_is_operator", is_operator)
    async with host_with_keys(monkeypatch, Rows()) as host:
        assert await told(host, path, Cookie="sessionid=x") == ALL
        assert await told(host, path) is None
        is_staff = False
        assert await told(host, path, Cookie="sessionid=x") is None


@paths
async def test_without_keys_everybody_is_told_all(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    async with host_with_keys(monkeypatch, Rows(), "open") as host:
        assert await told(host, path) == ALL
