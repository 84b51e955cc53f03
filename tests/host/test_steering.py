"""What operators ask for, carried out inside this process. Through the admin: `e2e/test_steering`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from gateway.catalog.manifests import load_manifest
from gateway.exceptions import ServerDisabled, UnknownServer
from gateway.host.availability import DISABLED, REMOVED, SWITCHED_OFF
from gateway.host.control import ENDED_BY_OPERATOR
from gateway.host.host import Host
from gateway.instances.policies import Policy, default_policy
from gateway.transports.sessions import Session
from gateway.upstreams.slots import Slots
from tests.support.function_calls import count_calls
from tests.support.in_process import InProcessHost, host_in_process
from tests.support.processes import ROOT

ERAS = ROOT / "tests" / "servers" / "eras"
LEDGER = "/ledger/ada:key"
OFF = replace(default_policy(), is_enabled=False)


class Wishes:
    """What the recorder has read from rows."""

    def __init__(self) -> None:
        self.policies: dict[str, Policy] | None = None
        self.sessions_to_end: list[UUID] = []
        self.servers_to_reload: set[str] = set()
        self.look_request: datetime | None = None

    def take_policies(self) -> dict[str, Policy] | None:
        policies, self.policies = self.policies, None
        return policies

    def take_sessions_to_end(self) -> list[UUID]:
        return self.sessions_to_end

    def take_servers_to_reload(self) -> set[str]:
        return self.servers_to_reload

    def take_look_request(self) -> datetime | None:
        look, self.look_request = self.look_request, None
        return look


@asynccontextmanager
async def steered() -> AsyncIterator[tuple[InProcessHost, Wishes]]:
    """A host and what its operators want."""
    async with host_in_process(ERAS) as host:
        wishes: Any = Wishes()
        host.host.recorder.operator_requests = wishes
        yield host, wishes


def carry_out(host: Host) -> None:
    host._steering.carry_out()


def only_session(host: Host) -> Session:
    (session,) = host.sessions
    return session


async def test_sessions_of_servers_that_may_be_used_cost_no_function_call_each_second() -> None:
    async with steered() as (host, _):
        await host.initialize(LEDGER)
        of_one = count_calls(lambda: carry_out(host.host))
        for _number in range(5):
            await host.initialize(LEDGER)
        assert count_calls(lambda: carry_out(host.host)) == of_one


async def test_server_that_is_switched_off_has_no_sessions_and_no_instances_until_it_is_switched_on() -> None:
    async with steered() as (host, wishes):
        client = await host.initialize(LEDGER)
        session = only_session(host.host)
        wishes.policies = {"ledger": OFF}
        carry_out(host.host)
        assert session.end_reason == DISABLED
        assert (len(host.host.sessions), len(host.host.instances)) == (0, 0)
        with pytest.raises(ServerDisabled, match="switched this server off"):
            host.host.availability.find("ledger")
        refused = await client.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}).reply()
        assert (refused.status, SWITCHED_OFF in refused.body.decode()) == (503, True)
        wishes.policies = {"ledger": default_policy()}
        carry_out(host.host)
        assert host.host.availability.find("ledger").name == "ledger"
        await host.initialize(LEDGER)


async def test_session_that_was_opened_just_before_its_server_was_switched_off_ends_at_the_next_look() -> None:
    async with steered() as (host, _):
        await host.initialize(LEDGER)
        session = only_session(host.host)
        host.host.policies.replace({"ledger": OFF})
        carry_out(host.host)
        assert session.end_reason == DISABLED


async def test_session_of_a_server_whose_folder_is_gone_ends() -> None:
    async with steered() as (host, _):
        await host.initialize(LEDGER)
        session = only_session(host.host)
        host.host.registry.remove(host.host.registry.get("ledger").folder)
        carry_out(host.host)
        assert session.end_reason == REMOVED
        with pytest.raises(UnknownServer):
            host.host.availability.find("ledger")


async def test_session_whose_row_asks_for_it_ends_and_no_other() -> None:
    async with steered() as (host, wishes):
        await host.initialize(LEDGER)
        session = only_session(host.host)
        await host.initialize("/ledger/bob:key")
        wishes.sessions_to_end = [session.row_id]
        carry_out(host.host)
        assert session.end_reason == ENDED_BY_OPERATOR
        assert only_session(host.host).identity.user_id == "bob"


async def test_limits_that_an_operator_sets_are_those_of_the_server() -> None:
    async with steered() as (host, wishes):
        wishes.policies = {"ledger": replace(default_policy(), call_timeout_seconds=7.5)}
        carry_out(host.host)
        assert host.host.policies.get("ledger").call_timeout_seconds == 7.5
        assert host.host.policies.get("another") == default_policy()


async def test_folder_that_an_operator_wants_in_a_process_of_its_own_is_loaded_so_now_and_at_the_next_start(
    tmp_path: Path, settings: Any
) -> None:
    settings.GUMCP_DATA_DIR = tmp_path
    settings.GUMCP_SERVER_DIRS = (ERAS,)
    async with steered() as (host, wishes):

        async def choose(isolates: bool | None) -> str:
            """Choose, and return how the folder is served then."""
            wishes.policies = {"ledger": replace(default_policy(), isolates=isolates)}
            carry_out(host.host)
            await asyncio.gather(*host.host.loop._tasks)
            source = host.host.registry.get("ledger").source
            at_the_next_start = load_manifest(host.host.registry.get("ledger").folder, Slots())
            assert (source is None) == (at_the_next_start is None)
            return "host" if source is None else source.kind

        assert await choose(True) == "process"
        assert await choose(False) == "host"
        assert await choose(True) == "process"
        assert await choose(None) == "host"


async def test_server_that_an_operator_wants_reloaded_runs_its_newest_code(monkeypatch: pytest.MonkeyPatch) -> None:
    async with steered() as (host, wishes):
        reloaded: list[set[str]] = []

        async def update(*, names: set[str]) -> None:
            reloaded.append(names)

        monkeypatch.setattr(host.host.reloader, "update", update)
        wishes.servers_to_reload = {"ledger"}
        carry_out(host.host)
        (task,) = host.host.loop._tasks
        await task
        assert reloaded == [{"ledger"}]


async def test_host_that_has_looked_for_new_folders_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with steered() as (host, wishes):
        done: list[object] = []

        async def update(*, names: set[str]) -> None:
            done.append(names)

        monkeypatch.setattr(host.host.reloader, "update", update)
        monkeypatch.setattr(host.host.recorder, "note_look", done.append)
        wishes.look_request = request = datetime.now(UTC)
        carry_out(host.host)
        (task,) = host.host.loop._tasks
        await task
        assert done == [set(), request]
        carry_out(host.host)
        assert not host.host.loop._tasks


async def test_clients_of_a_server_with_new_code_are_told_that_its_lists_may_have_changed() -> None:
    async with steered() as (host, _):
        client = await host.initialize(LEDGER)
        stream = client.get()
        await stream.head()
        host.host.availability.announce_new_code("ledger")
        methods = {(await stream.message())["method"] for _ in range(3)}
        assert methods == {
            "notifications/tools/list_changed",
            "notifications/resources/list_changed",
            "notifications/prompts/list_changed",
        }
