"""Live events of the overview, in the test's own process: who may watch, what is sent, and when it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from gateway.endpoints import live_events
from gateway.endpoints.live_events import PATH, LiveEvents
from gateway.exceptions import AuthenticationUnavailable, NotPermitted
from tests.support.in_process import Exchange, InProcessHost, host_in_process, no_django


class Checks:
    """Stands for the check of operators in the database."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.count = 0

    async def require_still(self, scope: Any, permission: str) -> None:
        assert permission == "records.view_overview"
        self.count += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    checks = Checks()
    monkeypatch.setattr(live_events, "PageRequests", lambda: checks)
    monkeypatch.setattr(live_events, "TICK_SECONDS", 0.05)
    return checks


@asynccontextmanager
async def watched_host(servers: Path) -> AsyncIterator[InProcessHost]:
    async with host_in_process(servers) as host:
        host.application._django = LiveEvents(host.host, no_django)
        yield host


async def snapshot(exchange: Exchange) -> Any:
    event = await exchange.event()
    assert event.name == "snapshot"
    return event.json


async def test_watchers_are_sent_the_same_snapshot_again_and_again(
    checks: Checks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    take = live_events.take_snapshot

    async with watched_host(tmp_path) as host:
        monkeypatch.setattr(
            host.application._django._feed, "_take", lambda host: made.append(1) or {**take(host), "number": len(made)}
        )
        first, second = host.open("GET", PATH), host.open("GET", PATH)
        seen = [await snapshot(first), await snapshot(first)]
        assert [await snapshot(second), await snapshot(second)] == seen
        assert seen[0]["state"]["level"] in ("well", "degraded")
        assert seen[1]["number"] == seen[0]["number"] + 1
        assert (await first.head())["status"] == 200


async def test_nothing_is_made_while_nobody_watches(checks: Checks, tmp_path: Path) -> None:
    async with watched_host(tmp_path) as host:
        watching = host.open("GET", PATH)
        await snapshot(watching)
        feed = host.application._django._feed
        task = feed._task
        watching.leave()
        await watching.task
        assert feed._task is None
        assert task is not None
        await asyncio.wait({task}, timeout=10)
        assert task.cancelled()


@pytest.mark.parametrize(
    ("error", "status"), [(NotPermitted(), 403), (AuthenticationUnavailable("The database is away."), 503)]
)
async def test_who_may_not_watch_is_refused_and_told_nothing(
    checks: Checks, tmp_path: Path, error: Exception, status: int
) -> None:
    checks.error = error
    async with watched_host(tmp_path) as host:
        answer = await host.request("GET", PATH)
    assert answer.status == status
    assert answer.json == {"error": str(error)}


async def test_other_methods_and_pages_of_other_sites_are_refused(checks: Checks, tmp_path: Path) -> None:
    async with watched_host(tmp_path) as host:
        assert (await host.request("POST", PATH)).status == 405
        foreign = {"Origin": "https://elsewhere.example"}
        assert (await host.request("GET", PATH, headers=foreign)).status == 403
    assert checks.count == 0


async def test_stream_ends_once_its_operator_is_logged_out_but_not_while_the_database_is_away(
    checks: Checks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_events, "CHECK_SECONDS", 0.02)
    async with watched_host(tmp_path) as host:
        watching = host.open("GET", PATH)
        await snapshot(watching)
        checks.error, before = AuthenticationUnavailable("The database is away."), checks.count
        while checks.count < before + 3:
            await snapshot(watching)
        checks.error = NotPermitted()
        await asyncio.wait_for(watching.task, 10)
        assert watching.is_ended


async def test_no_more_may_watch_than_the_setting_says(checks: Checks, tmp_path: Path) -> None:
    with override_settings(GUMCP_MAX_CONSOLES=1):
        async with watched_host(tmp_path) as host:
            watching = host.open("GET", PATH)
            await snapshot(watching)
            answer = await host.request("GET", PATH)
            assert (answer.status, answer.headers["retry-after"]) == (503, "10")


async def test_console_that_does_not_read_is_sent_nothing_more_and_is_cut(checks: Checks, tmp_path: Path) -> None:
    with override_settings(GUMCP_SLOW_READER_SECONDS=0.2):
        async with watched_host(tmp_path) as host:
            stuck, other = host.open("GET", PATH), host.open("GET", PATH)
            await snapshot(stuck)
            stuck.may_read.clear()
            for _ in range(8):
                await snapshot(other)
            feed = host.application._django._feed
            async with asyncio.timeout(10):
                while len(feed._read_at) > 1:
                    await snapshot(other)
            assert json.dumps(await snapshot(other))
            assert not stuck.is_ended


async def test_drain_ends_the_streams_at_once(checks: Checks, tmp_path: Path) -> None:
    async with watched_host(tmp_path) as host:
        watching = host.open("GET", PATH)
        await snapshot(watching)
        host.host.drain.begin()
        await asyncio.wait_for(watching.task, 10)
        assert watching.is_ended


async def test_snapshot_that_fails_is_logged_and_the_next_one_comes(
    checks: Checks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [ValueError("once")]
    async with watched_host(tmp_path) as host:

        def take(host: Any) -> dict[str, Any]:
            if failures:
                raise failures.pop()
            return {"is": "there"}

        monkeypatch.setattr(host.application._django._feed, "_take", take)
        assert await snapshot(host.open("GET", PATH)) == {"is": "there"}
    assert "The overview could not be made" in caplog.text
