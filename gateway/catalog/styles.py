"""Styles of server modules: what a module offers the host as its server.

`server` may be a factory, plain or async, that takes `(user_id, api_key)` or fewer, or an object that all users share.
The object, and what a factory returns, may be of any kind in `server_kinds`. Lives here: telling these apart, with a
reason where a module cannot be served. Not here: loading modules (`loading`) and calling factories (`factories`).
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mcp.server import MCPServer

from gateway.catalog.calling import bind
from gateway.catalog.server_kinds import SERVER_KINDS, is_fastmcp, knows_its_version, low_level_server
from gateway.compat.server import CompatServer


class UnusableServer(Exception):
    """A module's `server` is of no style that the host knows. The message is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Style:
    """How one module makes its servers."""

    server: Any
    """A factory, or the object that all users share."""
    get_initialization_options: Callable[..., Any] | None
    """None: the object is asked for its own name and version."""
    is_shared: bool
    """Whether `server` is an object. It is never changed for one user."""


def describe(module: ModuleType) -> Style:
    """Find out how `module` makes its servers.

    This calls neither of the module's two functions. But reading its attributes may run its code: its `__getattr__`,
    the `__class__` of a lazy object, a `__signature__`.

    Raises:
        UnusableServer: `server` is neither a server nor a factory that can be called, or the options are missing and
            the object has no version. What a factory makes is checked by `factories.make`.
        BaseException: what the module's own code raised.
    """
    server = getattr(module, "server", None)
    get_options = getattr(module, "get_initialization_options", None)
    if server is None:
        raise UnusableServer("main.py has no function server, and no server object of that name.")
    if get_options is not None:
        if not callable(get_options):
            raise UnusableServer("get_initialization_options in main.py is not callable.")
        _check_parameters("get_initialization_options", get_options, {"instance": None})
    try:
        shared = low_level_server(server)
    except TypeError as error:
        raise UnusableServer(str(error)) from None
    if shared is None:
        _check_factory(server)
        if get_options is None and not _may_return_versioned_server(module):
            raise UnusableServer("main.py has no function get_initialization_options.")
    elif get_options is None and not knows_its_version(server, shared):
        raise UnusableServer(
            "main.py has no function get_initialization_options, and its server has no version: add one of the two."
        )
    return Style(server, get_options, is_shared=shared is not None)


def _may_return_versioned_server(module: ModuleType) -> bool:
    """Whether a factory of this module may return an MCPServer or a FastMCP, which need no options.

    It may if the module has one of them, or has imported their class. A factory of low-level servers needs
    `get_initialization_options`, and its author is to learn that when the module is loaded, not from the first user.
    """
    return any(_is_about_versioned_servers(value) for value in vars(module).values())


def _is_about_versioned_servers(value: object) -> bool:
    if inspect.isclass(value):
        return issubclass(value, MCPServer) or value.__module__.partition(".")[0] == "fastmcp"
    if isinstance(value, ModuleType):
        package = value.__name__.partition(".")[0]
        return value.__name__ == "mcp" or value.__name__.startswith("mcp.server") or package == "fastmcp"
    return isinstance(value, MCPServer) or is_fastmcp(value)


def _check_factory(factory: object) -> None:
    if not callable(factory):
        raise UnusableServer(
            f"server in main.py is of type {type(factory).__name__}: it must be a factory or {SERVER_KINDS}."
        )
    if inspect.isclass(factory):
        constructor = getattr(factory.__init__, "__module__", "")
        if constructor.partition(".")[0] in ("mcp", "fastmcp") or constructor == CompatServer.__module__:
            # Its first parameter is the server's name: a user's id must not become that.
            raise UnusableServer(
                f"server is the class {factory.__name__}, whose constructor does not take user_id and api_key: "
                "call it, or write a function that does."
            )
    _check_parameters("server", factory, {"user_id": None, "api_key": None})


def _check_parameters(name: str, function: Callable[..., Any], offered: Mapping[str, Any]) -> None:
    try:
        bind(function, offered)
    except TypeError as error:
        raise UnusableServer(f"{name} in main.py cannot be called: {error}") from None
