"""The lifespan of an object that several users share."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from mcp.server import MCPServer, Server

from gateway.catalog.factories import make
from gateway.catalog.styles import Style, describe
from gateway.compat.server import CompatServer
from tests.support.styles import WAIT_SECONDS, ask, load, style_of

fastmcp_or_not = pytest.mark.parametrize("name", ["server_object", "fastmcp_object"])


@asynccontextmanager
async def alive(server: Server[Any]) -> AsyncIterator[Any]:
    """Hold the lifespan as an instance does."""
    async with asyncio.timeout(WAIT_SECONDS), server.lifespan(server) as state:
        yield state


@fastmcp_or_not
async def test_lifespan_of_a_shared_object_lasts_from_the_first_user_to_the_last(name: str) -> None:
    module = load(name)
    style = describe(module)
    async with AsyncExitStack() as alice, AsyncExitStack() as bob:
        for stack, user_id in ((alice, "alice"), (bob, "bob")):
            server, _ = await make(style, user_id, None)
            await stack.enter_async_context(alive(server))
        assert module.lifespans == ["entered"]
        await alice.aclose()
        assert module.lifespans == ["entered"]
        assert (await ask(server)).startswith("one of many")
        await bob.aclose()
    assert module.lifespans == ["entered", "left"]


@fastmcp_or_not
async def test_lifespan_is_entered_again_after_the_last_user_left(name: str) -> None:
    module = load(name)
    server, _ = await make(describe(module), "alice", None)
    for _ in range(2):
        async with alive(server):
            pass
    assert module.lifespans == ["entered", "left"] * 2


def server_with(lifespan: Callable[[Any], Any]) -> Style:
    return style_of(Server("x", version="1", lifespan=asynccontextmanager(lifespan)))


async def test_lifespan_that_is_being_left_is_waited_for_before_it_is_entered_again() -> None:
    seen: list[str] = []
    leaving, may_leave = asyncio.Event(), asyncio.Event()

    async def lifespan(app: Server[Any]) -> AsyncIterator[None]:
        seen.append("entered")
        yield
        leaving.set()
        await may_leave.wait()
        seen.append("left")

    server, _ = await make(server_with(lifespan), "alice", None)

    async def use() -> None:
        async with alive(server):
            pass

    first = asyncio.create_task(use())
    async with asyncio.timeout(WAIT_SECONDS):
        await leaving.wait()
        second = asyncio.create_task(use())
        await asyncio.sleep(0)
        assert seen == ["entered"]
        may_leave.set()
        await asyncio.gather(first, second)
    assert seen == ["entered", "left"] * 2


@pytest.mark.parametrize("error", [ValueError("no database"), SystemExit("no database")])
async def test_lifespan_that_cannot_be_entered_fails_everyone_who_waits_and_is_tried_again(
    error: BaseException,
) -> None:
    failing = [error]

    async def lifespan(app: Server[Any]) -> AsyncIterator[str]:
        await asyncio.sleep(0)
        if failing:
            raise failing[0]
        yield "set up"

    server, _ = await make(server_with(lifespan), "alice", None)

    async def use() -> str:
        async with alive(server) as state:
            return str(state)

    for outcome in await asyncio.gather(use_caught(use), use_caught(use)):
        assert outcome is error
    failing.clear()
    assert await use() == "set up"


async def use_caught(use: Callable[[], Any]) -> object:
    try:
        return await use()
    except (ValueError, SystemExit) as error:
        return error


async def test_lifespan_that_fails_at_its_end_fails_the_last_one_to_leave() -> None:
    async def lifespan(app: Server[Any]) -> AsyncIterator[None]:
        yield
        raise ValueError("could not close")

    server, _ = await make(server_with(lifespan), "alice", None)
    with pytest.raises(ValueError, match="could not close"):
        async with alive(server):
            pass


@pytest.mark.parametrize("error", [ValueError("connection lost"), None])
async def test_lifespan_that_ends_by_itself_is_over_for_all_who_hold_it_and_entered_anew(
    error: Exception | None,
) -> None:
    is_broken = asyncio.Event()
    seen: list[str] = []

    async def fail() -> None:
        await is_broken.wait()
        raise error or ZeroDivisionError

    async def lifespan(app: Server[Any]) -> AsyncIterator[int]:
        seen.append("entered")
        try:
            async with asyncio.TaskGroup() as group:
                failing = group.create_task(fail())
                yield len(seen)
                failing.cancel()
        except* ZeroDivisionError:
            pass
        finally:
            seen.append("left")

    server, _ = await make(server_with(lifespan), "alice", None)

    async def hold() -> str:
        try:
            async with alive(server):
                await asyncio.Event().wait()
        except Exception as raised:
            return repr(raised)
        return "ended"

    holders = [asyncio.create_task(hold()) for _ in range(2)]
    async with alive(server) as state:
        pass
    assert state == 1
    is_broken.set()
    outcomes = sorted(await asyncio.gather(*holders))
    expected = "ValueError('connection lost')" if error else "RuntimeError('The lifespan ended by itself.')"
    assert expected in outcomes[0]
    assert outcomes[1] == "ended"
    is_broken.clear()
    async with alive(server) as state:
        assert state == 3
    assert seen == ["entered", "left"] * 2


@pytest.mark.parametrize("steps", [0, 3])
async def test_lifespan_is_given_up_with_the_last_one_who_waits_for_it(steps: int) -> None:
    seen: list[str] = []

    async def lifespan(app: Server[Any]) -> AsyncIterator[None]:
        try:
            if len(seen) == 0:
                await asyncio.Event().wait()
            yield
        finally:
            seen.append("left")

    server, _ = await make(server_with(lifespan), "alice", None)

    async def use() -> None:
        async with alive(server):
            pass

    waiting = asyncio.create_task(use())
    for _ in range(steps + 1):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    seen.append("given up")
    await use()
    assert seen[-2:] == ["given up", "left"]


async def test_factory_that_keeps_one_object_has_one_lifespan() -> None:
    entered: list[object] = []

    async def lifespan(app: MCPServer[Any]) -> AsyncIterator[None]:
        entered.append(app)
        yield

    kept = MCPServer("x", version="1", lifespan=asynccontextmanager(lifespan))
    style = style_of(lambda: kept)
    for user_id in ("alice", "bob"):
        server, _ = await make(style, user_id, None)
    async with alive(server), alive(server):
        assert entered == [kept]


@pytest.mark.parametrize("kind", [Server, CompatServer])
async def test_server_without_a_lifespan_of_its_own_keeps_the_default(kind: type[Server[Any]]) -> None:
    made = kind("x", version="1")
    default = made.lifespan
    await make(style_of(made), "alice", None)
    assert made.lifespan is default
