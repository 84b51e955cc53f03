"""Every style of server module: what it makes, how it is called, and that clients of both eras can use it."""

import gc
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import mcp.server.mcpserver
import pytest
from mcp.server import MCPServer, Server

from gateway.catalog.factories import make
from gateway.catalog.styles import UnusableServer, describe
from gateway.compat.server import CompatServer
from tests.support.styles import STYLES, ask, load, module_with, style_of

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
    "object_called_mcp": "one of many",
    "server_object": "one of many, set up 1 times",
    "version_1_object": "one of many",
    "fastmcp_object": "one of many, {'set up': '1 times'}",
    "fastmcp_factory": "alice with secret",
}
"""What `whoami` of each example says to alice."""

SHARED = {"mcpserver_object", "object_called_mcp", "server_object", "version_1_object", "fastmcp_object"}
UNVERSIONED = {"mcpserver_object", "version_1_object"}

both_eras = pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
every_style = pytest.mark.parametrize("name", ANSWERS)


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


# -- what is refused


class Unrelated:
    pass


class Inheriting(MCPServer):
    pass


@pytest.mark.parametrize(
    ("server", "attributes", "reason"),
    [
        (None, {}, "no factory called server"),
        (1, {}, "server in main.py is of type int"),
        (Unrelated(), {}, "of type Unrelated: it must be a factory or an mcp.server.Server"),
        (sys, {}, "of type module"),
        (
            Server("x", version="1"),
            {"get_initialization_options": 1},
            "get_initialization_options in main.py is not callable",
        ),
        (lambda: None, {"get_initialization_options": lambda a, b: None}, "cannot be called: .* its parameter b"),
        (lambda scope, receive, send: None, {}, "server in main.py cannot be called: .* its parameter send"),
        (lambda user_id, *, region: None, {}, "server in main.py cannot be called: .* its parameter region"),
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
    with pytest.raises(UnusableServer, match="no factory called server, and no server object"):
        describe(ModuleType("main"))


# -- the name of the object


def main_with(**attributes: Any) -> ModuleType:
    module = ModuleType("main")
    module.__dict__.update(attributes)
    return module


@pytest.mark.parametrize("name", ["server", "mcp", "app", "mcp_server"])
@pytest.mark.parametrize("made", [MCPServer("x"), Server("x", version="1"), CompatServer("x")])
def test_object_is_found_by_the_names_that_are_usual(name: str, made: object) -> None:
    style = describe(main_with(**{name: made}))
    assert style.server is made
    assert style.is_shared


def test_fastmcp_object_is_found_by_the_names_that_are_usual() -> None:
    made = load("fastmcp_object").server
    assert describe(main_with(mcp=made)).server is made


@pytest.mark.parametrize("server", [None, sys, "https://example.com", 1])
def test_object_of_another_name_is_found_beside_a_server_that_is_none(server: object) -> None:
    made = MCPServer("x")
    assert describe(main_with(server=server, app="a web application", mcp=made)).server is made


def test_one_object_of_two_names_is_clear() -> None:
    made = MCPServer("x")
    assert describe(main_with(mcp=made, app=made)).server is made


def test_what_is_called_server_wins() -> None:
    made, other = MCPServer("x"), MCPServer("y")
    assert describe(main_with(server=made, mcp=other)).server is made
    factory = describe(main_with(server=lambda user_id: made, mcp=other))
    assert not factory.is_shared


def test_two_objects_of_which_none_is_called_server_are_refused_by_name() -> None:
    with pytest.raises(UnusableServer, match="mcp and app: call the one to be served server"):
        describe(main_with(mcp=MCPServer("x"), app=Server("y")))


async def test_object_without_a_version_is_served_as_unversioned() -> None:
    for made in (Server("x"), CompatServer("x")):
        _, options = await make(describe(main_with(server=made)), "alice", None)
        assert (options.server_name, options.server_version) == ("x", "")


HINTS = {
    "from mcp.server import MCPServer\nweather = MCPServer('x')": "called weather: add the line `server = weather`.",
    "def create_server(user_id): ...": "If create_server is the factory, add the line `server = create_server`.",
    "async def build_mcp_server(): ...": "If build_mcp_server is the factory",
    "def main():\n    mcp = 1": r"A server that is made in main\(\) is not found",
    "from json import dumps as create_server": r"mcp_server\.$",
    "VALUE = 1": r"mcp_server\.$",
}


@pytest.mark.parametrize(("source", "hint"), HINTS.items())
def test_module_without_a_server_is_refused_with_what_is_probably_meant(source: str, hint: str) -> None:
    module = ModuleType("main")
    exec(source, vars(module))  # noqa: S102
    with pytest.raises(UnusableServer, match=hint):
        describe(module)


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


@pytest.mark.usefixtures("processes")
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
