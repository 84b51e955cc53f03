"""How factories and `get_initialization_options` are called."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from mcp.server import MCPServer
from mcp.server.models import InitializationOptions

from gateway.catalog.factories import make
from tests.support.styles import style_of


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
