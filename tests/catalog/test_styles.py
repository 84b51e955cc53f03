"""Every style of server module: what it makes, how it is called, and that clients of both eras can use it."""

import asyncio
import gc
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mcp.server.mcpserver
import pytest
from mcp.client import Client
from mcp.server import MCPServer, Server
from mcp.server.models import InitializationOptions
from mcp.types import TextContent

from gateway.catalog.styles import Style, UnusableServer, describe, make
from gateway.compat.imports import compat_builtins
from gateway.compat.server import CompatServer

STYLES = Path(__file__).parents[1] / "servers" / "styles"
WAIT_SECONDS = 10

ANSWERS = {
    "factory": "alice with secret",
    "async_factory": "alice with secret",
    "factory_of_user": "alice",
    "factory_of_nobody": "nobody",
    "factory_by_name": "key secret",
    "factory_of_anything": "('alice', 'secret') {}",
    "factory_class": "alice",
    "factory_object": "alice, number 1",
    "mcpserver_factory": "alice",
    "mcpserver_object": "one of many",
    "server_object": "one of many, set up 1 times",
    "fastmcp_object": "one of many, {'set up': '1 times'}",
    "fastmcp_factory": "alice with secret",
}
"""What `whoami` of each example says to alice."""

SHARED = {"mcpserver_object", "server_object", "fastmcp_object"}
UNVERSIONED = {"mcpserver_object"}

both_eras = pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
every_style = pytest.mark.parametrize("name", ANSWERS)
fastmcp_or_not = pytest.mark.parametrize("name", ["server_object", "fastmcp_object"])


def load(name: str) -> ModuleType:
    """Execute an example as the host does, version 1's names included."""
    if name.startswith("fastmcp"):
        # Else it gives the SDK's models, those of other tests too, properties that warn when they are read.
        os.environ.setdefault("FASTMCP_MCP_CAMELCASE_COMPAT", "false")
        pytest.importorskip("fastmcp")
    spec = importlib.util.spec_from_file_location(f"style_{name}", STYLES / name / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__builtins__"] = compat_builtins()
    spec.loader.exec_module(module)
    return module


def module_with(server: Any, **attributes: Any) -> ModuleType:
    module = ModuleType("main")
    module.__dict__.update(attributes, server=server)
    return module


def style_of(server: Any, **attributes: Any) -> Style:
    # Like a module that imports MCPServer: its factories may do without get_initialization_options.
    return describe(module_with(server, **{"MCPServer": MCPServer, **attributes}))


async def ask(server: Server[Any], era: str = "2026-07-28") -> str:
    """What `whoami` answers."""
    async with asyncio.timeout(WAIT_SECONDS), Client(server, mode=era) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["whoami"]
        result = await client.call_tool("whoami", {})
    assert not result.is_error, result
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


def test_every_example_is_tested() -> None:
    assert {path.parent.name for path in STYLES.glob("*/main.py")} == set(ANSWERS)


@both_eras
@every_style
async def test_every_style_answers_clients_of_both_eras(name: str, era: str) -> None:
    server, options = await make(describe(load(name)), "alice", "secret")
    gc.collect()  # what the author made may be held by nobody else
    assert await ask(server, era) == ANSWERS[name]
    assert options.server_name == name
    assert options.server_version == ("" if name in UNVERSIONED else "1.0")
    assert options.capabilities.tools is not None


@every_style
async def test_users_share_an_object_and_nothing_that_a_factory_made(name: str) -> None:
    style = describe(load(name))
    alice, _ = await make(style, "alice", "secret")
    bob, _ = await make(style, "bob", None)
    assert style.is_shared == (name in SHARED)
    assert (alice is bob) == style.is_shared


@pytest.mark.parametrize("name", ["factory", "mcpserver_factory", "factory_class", "fastmcp_factory"])
async def test_one_user_never_gets_the_answers_of_another(name: str) -> None:
    style = describe(load(name))
    servers = [(await make(style, user_id, None))[0] for user_id in ("alice", "bob", "alice")]
    assert [(await ask(server)).split()[0] for server in servers] == ["alice", "bob", "alice"]


@pytest.mark.parametrize("name", sorted(SHARED))
async def test_shared_object_is_the_same_after_every_user(name: str) -> None:
    style = describe(load(name))
    server, first_options = await make(style, "alice", "secret")
    before = {key: list(value) if isinstance(value, list) else value for key, value in vars(server).items()}
    _, options = await make(style, "bob", "other")
    assert vars(server) == before
    assert options == first_options


# -- lifespans


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


# -- how factories are called


class Recorded(Exception):
    """Raised by a factory to tell what it got."""


def record(*got: Any) -> Any:
    raise Recorded(*got)


FACTORIES: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    (lambda user_id, api_key: record(user_id, api_key), ("alice", "secret")),
    (lambda user_id, api_key=None: record(user_id, api_key), ("alice", "secret")),
    (lambda uid, key: record(uid, key), ("alice", "secret")),
    (lambda uid, key="": record(uid, key), ("alice", "secret")),
    (lambda user_id, token=None: record(user_id, token), ("alice", "secret")),
    (lambda user, api_key: record(user, api_key), ("alice", "secret")),
    (lambda api_key, user_id: record(api_key, user_id), ("secret", "alice")),
    (lambda api_key, user: record(api_key, user), ("secret", "alice")),
    (lambda a, b, /: record(a, b), ("alice", "secret")),
    (lambda api_key, user_id, /: record(api_key, user_id), ("secret", "alice")),
    (lambda *, api_key, user_id: record(user_id, api_key), ("alice", "secret")),
    (lambda user_id: record(user_id), ("alice",)),
    (lambda anyone: record(anyone), ("alice",)),
    (lambda *, user_id: record(user_id), ("alice",)),
    (lambda api_key: record(api_key), ("secret",)),
    (lambda: record(), ()),
    (lambda *args: record(*args), ("alice", "secret")),
    (lambda user_id, *args: record(user_id, *args), ("alice", "secret")),
    (lambda **kwargs: record(*sorted(kwargs.items())), (("api_key", "secret"), ("user_id", "alice"))),
    (lambda user_id, **kwargs: record(user_id, kwargs), ("alice", {"api_key": "secret"})),
    (lambda user_id, api_key, debug=False: record(user_id, api_key, debug), ("alice", "secret", False)),
    (lambda user_id, region="eu": record(user_id, region), ("alice", "eu")),
    (lambda user_id, *, region="eu", api_key: record(user_id, region, api_key), ("alice", "eu", "secret")),
    (partial(lambda region, user_id, api_key: record(region, user_id, api_key), "eu"), ("eu", "alice", "secret")),
    (SimpleNamespace(make=lambda user_id: record(user_id)).make, ("alice",)),
]


@pytest.mark.parametrize(("factory", "got"), FACTORIES)
async def test_factory_gets_the_user_and_the_key_by_name_or_by_position(
    factory: Callable[..., Any], got: tuple[Any, ...]
) -> None:
    with pytest.raises(Recorded) as recorded:
        await make(style_of(factory), "alice", "secret")
    assert recorded.value.args == got


@pytest.mark.parametrize(
    "get_options",
    [
        lambda instance: record(instance),
        lambda server: record(server),
        lambda: record("nothing"),
        lambda instance=None: record(instance),
        lambda *, instance: record(instance),
        lambda *args: record(*args),
    ],
)
async def test_options_are_asked_with_the_authors_object_or_with_nothing(get_options: Callable[..., Any]) -> None:
    made = MCPServer("x")
    with pytest.raises(Recorded) as recorded:
        await make(style_of(lambda: made, get_initialization_options=get_options), "alice", None)
    assert recorded.value.args[0] in (made, "nothing")


async def test_options_of_the_module_win_over_what_the_object_knows() -> None:
    told = InitializationOptions.model_validate({"server_name": "y", "server_version": "2", "capabilities": {}})
    style = style_of(MCPServer("x", version="1"), get_initialization_options=lambda: told)
    assert (await make(style, "alice", None))[1] is told


# -- what is refused


class Unrelated:
    pass


class Inheriting(MCPServer):
    pass


@pytest.mark.parametrize(
    ("server", "attributes", "reason"),
    [
        (None, {}, "no function server"),
        (1, {}, "no function server: what has that name is of type int"),
        (Unrelated(), {}, "of type Unrelated, neither a factory nor an mcp.server.Server"),
        (sys, {}, "of type module"),
        (Server("x"), {}, "no function get_initialization_options, and its server has no version"),
        (Server("x"), {"get_initialization_options": None}, "no function get_initialization_options"),
        (Server("x", version="1"), {"get_initialization_options": 1}, "no function get_initialization_options"),
        (lambda: None, {"get_initialization_options": lambda a, b: None}, "cannot be called: .* its parameter b"),
        (lambda scope, receive, send: None, {}, "server cannot be called: .* its parameter send"),
        (lambda user_id, *, region: None, {}, "server cannot be called: .* its parameter region"),
        (Server, {}, "server is the class Server"),
        (CompatServer, {}, "server is the class CompatServer"),
        (MCPServer, {}, "server is the class MCPServer"),
        (Inheriting, {}, "server is the class Inheriting"),
    ],
)
def test_what_is_no_server_is_refused_in_one_plain_sentence(
    server: Any, attributes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnusableServer, match=reason) as refused:
        style_of(server, **attributes)
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)


def test_module_without_a_server_is_refused() -> None:
    with pytest.raises(UnusableServer, match="no function server"):
        describe(ModuleType("main"))


async def wait_for_nothing() -> None:
    return None


@pytest.mark.parametrize(
    ("server", "attributes", "reason"),
    [
        (lambda: None, {}, "The factory returned NoneType, not an mcp.server.Server, an MCPServer or a FastMCP"),
        (wait_for_nothing, {}, "The factory returned NoneType"),
        (lambda: MCPServer, {}, "The factory returned type"),
        (asynccontextmanager(wait_for_nothing), {}, "The factory returned _AsyncGeneratorContextManager"),  # type: ignore[arg-type]
        (lambda: Server("x"), {}, "The factory's server has no version"),
        (lambda: CompatServer("x"), {}, "The factory's server has no version"),
        (MCPServer("x"), {"get_initialization_options": lambda: [1]}, "get_initialization_options returned list"),
        (MCPServer("x"), {"get_initialization_options": wait_for_nothing}, "get_initialization_options returned None"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine 'wait_for_nothing' was never awaited")
async def test_nonsense_from_the_modules_functions_is_a_type_error_that_names_it(
    server: Any, attributes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TypeError, match=reason):
        await make(style_of(server, **attributes), "alice", "secret")


async def test_sdk_that_keeps_the_server_elsewhere_is_told_apart_from_a_wrong_module() -> None:
    server = MCPServer("x")
    del server._lowlevel_server
    with pytest.raises(UnusableServer, match="package mcp keeps the server of a MCPServer elsewhere"):
        style_of(server)


def test_fastmcp_is_loaded_by_nobody_who_does_not_use_it() -> None:
    program = (
        "import sys, gateway.catalog.styles, types, mcp.server\n"
        "module = types.ModuleType('main'); module.server = mcp.server.MCPServer('x')\n"
        "gateway.catalog.styles.describe(module)\n"
        "sys.exit('fastmcp' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


def test_factory_of_low_level_servers_without_options_is_unusable() -> None:
    module = module_with(lambda user_id, api_key: Server("x", version="1"))
    with pytest.raises(UnusableServer, match="no function get_initialization_options"):
        describe(module)


class Derived(MCPServer):
    def __init__(self, user_id: str) -> None:
        super().__init__("x")


@pytest.mark.parametrize("at_hand", [MCPServer, Derived, MCPServer("x"), mcp, mcp.server.mcpserver])
def test_factory_without_options_is_usable_where_it_may_make_what_knows_itself(at_hand: Any) -> None:
    style = describe(module_with(lambda user_id: None, at_hand=at_hand))
    assert style.get_initialization_options is None
