import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from django.test import override_settings

from gateway.access.grants import Grant, KeyFacts
from gateway.access.identity import Identity, current_identity
from gateway.access.limits import RateLimits
from gateway.access.log_redaction import install_record_redaction
from gateway.access.redaction import PathRedactor
from gateway.apps import GatewayConfig
from gateway.catalog.definitions import ServerDefinition
from gateway.catalog.discovery import discover
from gateway.exceptions import InstanceLimitReached, InstanceUnavailable
from gateway.instances.instance import Instance
from gateway.instances.instances import Instances
from gateway.instances.lanes import Lanes
from gateway.instances.listings import Listing, Listings
from gateway.instances.policies import Policies
from tests.support.processes import until
from tests.support.server_folders import WriteServer


@asynccontextmanager
async def new_instances(listings: Listings | None = None) -> AsyncIterator[Instances]:
    lanes = Lanes()
    instances = Instances(lanes, listings or Listings(), Policies())
    try:
        yield instances
    finally:
        await instances.stop()
        await asyncio.to_thread(lanes.stop)


@pytest.fixture
def record_factory() -> Iterator[None]:
    """Put back how log records are made."""
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)


@pytest.fixture
def moody() -> ServerDefinition:
    return GatewayConfig.current().registry.get("moody")


@pytest.fixture
def workshop() -> ServerDefinition:
    return GatewayConfig.current().registry.get("workshop")


def built(definition: ServerDefinition, user_id: str) -> int:
    return int(definition.style.server.__globals__["built"][user_id])


def open_lifespans(definition: ServerDefinition) -> list[str]:
    lifespans: list[str] = definition.style.server.__globals__["lifespans"]
    return lifespans


async def use_once(instances: Instances, definition: ServerDefinition, identity: Identity) -> Instance:
    async with instances.use(definition, identity) as instance:
        return instance


async def test_instance_is_built_once_when_fifty_connect_at_the_same_moment(moody: ServerDefinition) -> None:
    identity = Identity("slow-fifty", "key")
    async with new_instances() as instances:
        used = await asyncio.gather(*(use_once(instances, moody, identity) for _ in range(50)))
        assert len(set(map(id, used))) == 1
        assert built(moody, "slow-fifty") == 1
        assert len(instances) == 1


async def test_instance_is_reused_by_later_connections(moody: ServerDefinition) -> None:
    async with new_instances() as instances:
        first = await use_once(instances, moody, Identity("fine-reused"))
        assert await use_once(instances, moody, Identity("fine-reused")) is first


async def test_server_user_and_key_each_make_an_instance_of_their_own(
    moody: ServerDefinition, workshop: ServerDefinition
) -> None:
    async with new_instances() as instances:
        callers = [
            *((moody, Identity("fine", "one")), (moody, Identity("fine", "two")), (moody, Identity("fine"))),
            *((moody, Identity("fine-2", "one")), (workshop, Identity("fine", "one"))),
        ]
        used = [await use_once(instances, definition, identity) for definition, identity in callers]
        assert len(set(map(id, used))) == len(callers)
        assert instances.count_by_server() == {"moody": 4, "workshop": 1}


async def test_factory_runs_in_its_servers_lane(workshop: ServerDefinition) -> None:
    async with new_instances() as instances:
        instance = await use_once(instances, workshop, Identity("lane"))
        assert instance.running.lane is instance.lane
        assert instance.lane.name == "workshop"


async def test_factory_over_its_time_limit_fails_and_its_late_instance_is_dropped(moody: ServerDefinition) -> None:
    identity = Identity("stuck-user")
    async with new_instances() as instances:
        with override_settings(GUMCP_FACTORY_TIMEOUT_SECONDS=0.2), pytest.raises(InstanceUnavailable):
            await use_once(instances, moody, identity)
        assert len(instances) == 0
        # The lane is busy with the late factory until it returns; then the next attempt gets a new instance.
        await use_once(instances, moody, identity)
        assert built(moody, "stuck-user") == 2
        assert len(instances) == 1


async def test_lifespan_over_the_time_limit_fails(moody: ServerDefinition) -> None:
    async with new_instances() as instances:
        with override_settings(GUMCP_FACTORY_TIMEOUT_SECONDS=0.2), pytest.raises(InstanceUnavailable):
            await use_once(instances, moody, Identity("endless-user"))
        await use_once(instances, moody, Identity("fine-after-endless"))


@pytest.mark.parametrize("mood", ["raises", "exits", "nonsense", "optionless", "lifeless"])
async def test_factory_that_fails_for_one_key_fails_for_no_other(
    moody: ServerDefinition, mood: str, caplog: pytest.LogCaptureFixture
) -> None:
    identity = Identity(f"{mood}-alone", "canary-key")
    async with new_instances() as instances:
        before = built(moody, identity.user_id)
        for attempt in (1, 2):
            with pytest.raises(InstanceUnavailable) as error:
                await use_once(instances, moody, identity)
            assert not isinstance(error.value, InstanceLimitReached)
            assert "canary" not in str(error.value)
            assert built(moody, identity.user_id) - before == attempt
            await use_once(instances, moody, Identity("fine-beside"))
        assert len(instances) == 1
    assert "canary-key" not in caplog.text
    assert "moody" in caplog.text


async def test_all_who_waited_for_a_factory_that_failed_are_told(moody: ServerDefinition) -> None:
    async with new_instances() as instances:
        callers = (use_once(instances, moody, Identity("flaky-crowd")) for _ in range(10))
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {InstanceUnavailable}
        assert built(moody, "flaky-crowd") == 1
        await use_once(instances, moody, Identity("flaky-crowd"))


async def test_caller_that_leaves_while_it_waits_costs_the_others_nothing(moody: ServerDefinition) -> None:
    identity = Identity("slow-left")
    async with new_instances() as instances:
        leaving = asyncio.create_task(use_once(instances, moody, identity))
        staying = asyncio.create_task(use_once(instances, moody, identity))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await staying
        assert built(moody, "slow-left") == 1


@override_settings(GUMCP_MAX_INSTANCES=2)
async def test_instance_beyond_the_limit_is_refused_while_all_are_in_use(moody: ServerDefinition) -> None:
    async with new_instances() as instances, AsyncExitStack() as stack:
        await stack.enter_async_context(instances.use(moody, Identity("fine-1")))
        async with instances.use(moody, Identity("fine-2")):
            with pytest.raises(InstanceLimitReached):
                await use_once(instances, moody, Identity("fine-3"))
            await use_once(instances, moody, Identity("fine-1"))
        await use_once(instances, moody, Identity("fine-3"))
        assert len(instances) == 2


@override_settings(GUMCP_MAX_INSTANCES=3)
async def test_longest_idle_instance_makes_room_for_a_new_one(workshop: ServerDefinition) -> None:
    async with new_instances() as instances, AsyncExitStack() as stack:
        held = await stack.enter_async_context(instances.use(workshop, Identity("held")))
        for user_id in ("second", "third", "second"):
            await use_once(instances, workshop, Identity(user_id))
        kept = await use_once(instances, workshop, Identity("second"))
        await use_once(instances, workshop, Identity("new"))
        await asyncio.to_thread(until, lambda: "third" not in open_lifespans(workshop))
        assert {instance.identity.user_id for instance in instances} == {"held", "second", "new"}
        assert await use_once(instances, workshop, Identity("second")) is kept
        assert await use_once(instances, workshop, Identity("held")) is held
        for number in range(20):
            await use_once(instances, workshop, Identity(f"invented-{number}"))
        assert len(instances) == 3


@override_settings(GUMCP_MAX_INSTANCES=5)
async def test_users_that_one_address_invents_make_room_for_each_other_only(workshop: ServerDefinition) -> None:
    async with new_instances() as instances:
        addresses = {"ada": "192.0.2.1", "bob": "192.0.2.2", "eve": "2001:db8::1"}
        for user_id, address in addresses.items():
            async with instances.use(workshop, Identity(user_id), address):
                pass
        for number in range(20):
            async with instances.use(workshop, Identity(f"invented-{number}"), "198.51.100.7"):
                pass
        assert {instance.identity.user_id for instance in instances} == {*addresses, "invented-18", "invented-19"}


@override_settings(GUMCP_MAX_INSTANCES=1)
async def test_instance_that_makes_room_ends_when_what_it_handles_has_ended(workshop: ServerDefinition) -> None:
    async with new_instances() as instances:
        instance = await use_once(instances, workshop, Identity("busy"))
        generation = instance.running.generation
        is_begun, is_handled = threading.Event(), asyncio.Event()

        async def wait(ctx: Any) -> None:
            is_begun.set()
            await is_handled.wait()

        context: Any = SimpleNamespace(lifespan_context=generation.lifespan.state)
        handling = instance.lane.submit(generation.handle(context, wait))
        await asyncio.to_thread(is_begun.wait, 5)
        await use_once(instances, workshop, Identity("new"))
        await instance.lane.run(asyncio.sleep(0))
        assert "busy" in open_lifespans(workshop)
        instance.lane.post(is_handled.set)
        await asyncio.wrap_future(handling)
        await asyncio.to_thread(until, lambda: "busy" not in open_lifespans(workshop))


async def test_instance_whose_callers_left_while_it_was_made_is_idle(moody: ServerDefinition) -> None:
    with override_settings(GUMCP_MAX_INSTANCES=1, GUMCP_INSTANCE_IDLE_SECONDS=0):
        async with new_instances() as instances:
            leaving = asyncio.create_task(use_once(instances, moody, Identity("slow-unwanted")))
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait({leaving})
            with pytest.raises(InstanceLimitReached):
                await use_once(instances, moody, Identity("fine-early"))
            await asyncio.to_thread(until, lambda: instances.count_by_server()["moody"])
            await use_once(instances, moody, Identity("fine-late"))
            assert instances.expire() == 1
            assert len(instances) == 0


async def test_limit_counts_what_is_still_being_built(moody: ServerDefinition) -> None:
    with override_settings(GUMCP_MAX_INSTANCES=3):
        async with new_instances() as instances:
            callers = (use_once(instances, moody, Identity(f"slow-limit-{number}")) for number in range(8))
            outcomes = await asyncio.gather(*callers, return_exceptions=True)
            assert sum(isinstance(outcome, InstanceLimitReached) for outcome in outcomes) == 5
            assert len(instances) == 3


async def test_idle_instance_expires_and_its_lifespan_ends(workshop: ServerDefinition) -> None:
    async with new_instances() as instances:
        first = await use_once(instances, workshop, Identity("idle"))
        await asyncio.to_thread(until, lambda: "idle" in open_lifespans(workshop))
        assert instances.expire() == 0
        with override_settings(GUMCP_INSTANCE_IDLE_SECONDS=0):
            assert instances.expire() == 1
        await asyncio.to_thread(until, lambda: "idle" not in open_lifespans(workshop))
        assert await use_once(instances, workshop, Identity("idle")) is not first


async def test_instance_in_use_does_not_expire(workshop: ServerDefinition) -> None:
    with override_settings(GUMCP_INSTANCE_IDLE_SECONDS=0):
        async with new_instances() as instances, AsyncExitStack() as stack:
            instance = await stack.enter_async_context(instances.use(workshop, Identity("used")))
            async with instances.use(workshop, Identity("used")):
                pass
            assert instances.expire() == 0
            assert await use_once(instances, workshop, Identity("used")) is instance


async def test_lifespans_end_when_the_host_stops(workshop: ServerDefinition) -> None:
    async with new_instances() as instances:
        await use_once(instances, workshop, Identity("stopping"))
        await asyncio.to_thread(until, lambda: "stopping" in open_lifespans(workshop))
    assert "stopping" not in open_lifespans(workshop)


def narrow_identity(server_name: str, tool: str) -> Identity:
    """Somebody whose key is for one tool of one server."""
    facts = KeyFacts(1, "gum_public", b"", "narrow", {server_name: frozenset({tool})}, expires_at=None, is_active=True)
    return Identity("narrow", "canary-key", Grant(facts, time.monotonic(), RateLimits({})))


async def test_listing_is_all_that_the_server_has_whatever_the_first_callers_key_is_for(
    workshop: ServerDefinition,
) -> None:
    listings, identity = Listings(), narrow_identity("workshop", "echo")
    current_identity.set(identity)
    async with new_instances(listings) as instances:
        await use_once(instances, workshop, identity)
        await asyncio.to_thread(until, lambda: listings.get("workshop"))
        first = listings.get("workshop")
        assert first is not None
        assert {"echo", "keep", "whoami"} <= set(first.tools)
        listings.learn("workshop", Listing())
        newer = replace(workshop)
        instances.expect(newer)
        await instances.switch(newer)
        await asyncio.to_thread(until, lambda: listings.get("workshop") == first)


async def test_options_of_the_module_name_the_server(workshop: ServerDefinition) -> None:
    async with new_instances() as instances:
        instance = await use_once(instances, workshop, Identity("named"))
        assert (instance.running.server.name, instance.running.server.version) == ("workshop", "7.1")


TALKATIVE = """
    import logging
    from contextlib import asynccontextmanager

    from mcp.server import Server

    def server(user_id, api_key=None):
        logging.getLogger("talkative").warning("made for %s", api_key)

        async def list_tools(ctx, params):
            raise RuntimeError(f"no tools for {api_key}")

        @asynccontextmanager
        async def lifespan(server):
            yield {}
            raise RuntimeError(f"no end for {api_key}")

        return Server("talkative", version="1", on_list_tools=list_tools, lifespan=lifespan)

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""


async def test_no_failure_of_a_servers_own_code_says_the_key(
    write_server: WriteServer, caplog: pytest.LogCaptureFixture, record_factory: None
) -> None:
    install_record_redaction(PathRedactor([]))
    (definition,) = discover([write_server("talkative", TALKATIVE)]).definitions
    async with new_instances() as instances:
        instance = await use_once(instances, definition, Identity("ada", "canary-key"))
        await asyncio.to_thread(until, lambda: "could not be asked for its lists" in caplog.text)
        await instance.lane.run(instance.running.prepare_tool_schema("tool"))
        newer = replace(definition)
        instances.expect(newer)
        await instances.switch(newer)
    assert caplog.text.count("made for [redacted]") == 2
    assert caplog.text.count("RuntimeError: no end for [redacted]") == 2
    assert "could not be listed" in caplog.text
    assert "no tools for [redacted]" in caplog.text
    assert "canary-key" not in caplog.text


FRAGILE = """
    import asyncio
    from contextlib import asynccontextmanager

    from mcp.server import Server

    breaking = {}
    left = []

    def server(user_id, api_key=None):
        if user_id in breaking and user_id == "once":
            raise RuntimeError("not again")

        async def pump(is_broken):
            await is_broken.wait()
            raise RuntimeError(f"connection of {api_key} lost")

        @asynccontextmanager
        async def lifespan(server):
            breaking[user_id] = asyncio.Event()
            try:
                async with asyncio.TaskGroup() as group:
                    pumping = group.create_task(pump(breaking[user_id]))
                    yield breaking[user_id]
                    pumping.cancel()
            finally:
                left.append(user_id)

        return Server("fragile", version="1", lifespan=lifespan)

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""


async def lose_lifespan(instance: Instance) -> None:
    instance.lane.post(instance.running.lifespan_state.set)
    await asyncio.to_thread(until, lambda: instance.running.is_lost)


async def test_instance_whose_lifespan_ended_by_itself_is_made_anew_with_its_next_use(
    write_server: WriteServer, caplog: pytest.LogCaptureFixture
) -> None:
    (definition,) = discover([write_server("fragile", FRAGILE)]).definitions
    async with new_instances() as instances:
        ada = await use_once(instances, definition, Identity("ada", "canary-key"))
        bob = await use_once(instances, definition, Identity("bob"))
        await lose_lifespan(ada)
        again = await use_once(instances, definition, Identity("ada", "canary-key"))
        assert again is not ada
        assert await use_once(instances, definition, Identity("ada", "canary-key")) is again
        assert await use_once(instances, definition, Identity("bob")) is bob
        assert instances.count_by_server() == {"fragile": 2}
        await asyncio.to_thread(until, lambda: "ended by itself" in caplog.text)
        once = await use_once(instances, definition, Identity("once"))
        await lose_lifespan(once)
        for _ in range(2):
            with pytest.raises(InstanceUnavailable):
                await use_once(instances, definition, Identity("once"))
    assert caplog.text.count("RuntimeError: connection of [redacted] lost") == 1
    assert "canary-key" not in caplog.text


async def test_instance_that_is_let_go_while_its_lost_lifespan_is_entered_anew_leaves_that(
    write_server: WriteServer,
) -> None:
    (definition,) = discover([write_server("fragile", FRAGILE)]).definitions
    left = definition.style.server.__globals__["left"]
    async with new_instances() as instances:
        instance = await use_once(instances, definition, Identity("ada"))
        await lose_lifespan(instance)
        await asyncio.to_thread(until, lambda: left == ["ada"])
        # The lane comes to it when the instance has been let go.
        replacing = instance.lane.submit(instance.running._replace_lost())
        instances.drop("fragile")
        await asyncio.wrap_future(replacing)
        await asyncio.to_thread(until, lambda: left == ["ada", "ada"])


LAGGING = """
    import asyncio
    import time
    from contextlib import asynccontextmanager

    from mcp.server import Server

    steps = []

    def block_after(turns):
        if turns:
            asyncio.get_running_loop().call_soon(block_after, turns - 1)
        else:
            time.sleep(0.2)

    def server(user_id, api_key=None):
        @asynccontextmanager
        async def lifespan(server):
            if user_id.isdigit():
                block_after(int(user_id))
            steps.append("entered")
            try:
                yield
            finally:
                steps.append("left")

        return Server("lagging", version="1", lifespan=lifespan)

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""


async def test_instance_that_starts_in_the_moment_in_which_its_time_is_over_leaves_its_lifespan(
    write_server: WriteServer,
) -> None:
    (definition,) = discover([write_server("lagging", LAGGING)]).definitions
    steps = definition.style.server.__globals__["steps"]
    async with new_instances() as instances:
        with override_settings(GUMCP_FACTORY_TIMEOUT_SECONDS=0.1):
            # In one of these turns of the lane's loop the start ends, before what cancels it.
            for turns in range(6):
                with suppress(InstanceUnavailable):
                    await use_once(instances, definition, Identity(str(turns)))
                await instances._lanes.get("lagging").run(asyncio.sleep(0))
            # Here it has ended, and the host's loop hears of it too late.
            gate = threading.Event()
            instances._lanes.get("lagging").post(gate.wait, 10)
            using = asyncio.create_task(use_once(instances, definition, Identity("host")))
            for _ in range(3):
                await asyncio.sleep(0)
            gate.set()
            time.sleep(0.2)
            with pytest.raises(InstanceUnavailable, match="too long"):
                await using
        instances.drop("lagging")
        assert len(instances) == 0
        assert "entered" in steps
        await asyncio.to_thread(until, lambda: steps.count("left") == steps.count("entered"))
