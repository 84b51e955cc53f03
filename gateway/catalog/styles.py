"""Styles of server modules: what a module offers the host as its server.

`server` may be a factory, plain or async, that takes `(user_id, api_key)` or fewer, or an object that all users share.
Such an object may also have one of the other names that `mcp run` and `fastmcp run` look for. The object, and what a
factory returns, may be of any kind in `server_kinds`. Lives here: telling these apart, with a
reason where a module cannot be served. Not here: loading modules (`loading`) and calling factories (`factories`).
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from mcp.server import MCPServer

from gateway.catalog.calling import bind
from gateway.catalog.server_kinds import SERVER_KINDS, is_fastmcp, low_level_server
from gateway.compat.detection import is_written_for_version_1
from gateway.compat.fastmcp.server import FastMCP as Version1FastMCP
from gateway.compat.server import CompatServer

OBJECT_NAMES: Final = ("mcp", "app", "mcp_server")
"""Names besides `server` that an object may have which all users share."""

_FACTORY_NAME: Final = re.compile(r"(create|make|build|get|new|init)_?\w*(server|mcp|app)\w*|\w*(server|mcp)_factory")
"""Names of functions that are probably factories."""


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
    is_version_1: bool = False
    """Whether the module was written for version 1 of the SDK, so that its factory belongs on its home loop."""


def describe(module: ModuleType) -> Style:
    """Find out how `module` makes its servers.

    This calls no function of the module. But reading its attributes may run its code: its `__getattr__`, the
    `__class__` of a lazy object, a `__signature__`.

    Raises:
        UnusableServer: there is no server and no factory that can be called, or it is not clear which, or a factory of
            low-level servers comes without options. What a factory makes is checked by `factories.make`.
        BaseException: what the module's own code raised.
    """
    server = getattr(module, "server", None)
    get_options = getattr(module, "get_initialization_options", None)
    if get_options is not None:
        if not callable(get_options):
            raise UnusableServer("get_initialization_options in main.py is not callable.")
        _check_parameters("get_initialization_options", get_options, {"instance": None})
    if _is_server(server):
        return Style(server, get_options, is_shared=True)
    if callable(server):
        _check_factory(server)
        if get_options is None and not _may_return_versioned_server(module):
            raise UnusableServer(
                "main.py has a factory of low-level servers and no function get_initialization_options."
            )
        return Style(server, get_options, is_shared=False, is_version_1=is_written_for_version_1(module))
    return Style(_other_object(module, server), get_options, is_shared=True)


def _other_object(module: ModuleType, server: object) -> object:
    """Return the server object of a module whose `server` is missing, or is something else."""
    found = {name: value for name in OBJECT_NAMES if _is_server(value := vars(module).get(name))}
    if len({id(value) for value in found.values()}) > 1:
        names = " and ".join(found)
        raise UnusableServer(f"main.py has several server objects, {names}: call the one to be served server.")
    if found:
        return next(iter(found.values()))
    if server is not None:
        raise UnusableServer(
            f"server in main.py is of type {type(server).__name__}: it must be a factory or {SERVER_KINDS}."
        )
    raise UnusableServer(
        f"main.py has no factory called server, and no server object ({SERVER_KINDS}) called server, "
        f"{', '.join(OBJECT_NAMES[:-1])} or {OBJECT_NAMES[-1]}.{_hint(module)}"
    )


def _hint(module: ModuleType) -> str:
    """Return what is probably meant to be the server, as a further sentence."""
    values = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    if objects := [name for name, value in values.items() if _is_server(value)]:
        return f" There is a server object called {objects[0]}: add the line `server = {objects[0]}`."
    own = {
        name: value
        for name, value in values.items()
        if inspect.isroutine(value) and getattr(value, "__module__", None) == module.__name__
    }
    if factories := [name for name in own if _FACTORY_NAME.fullmatch(name)]:
        return f" If {factories[0]} is the factory, add the line `server = {factories[0]}`."
    if "main" in own:
        return " A server that is made in main() is not found: make it where the module is imported."
    return ""


def _is_server(value: object) -> bool:
    try:
        return low_level_server(value) is not None
    except TypeError as error:
        raise UnusableServer(str(error)) from None


def _may_return_versioned_server(module: ModuleType) -> bool:
    """Whether a factory of this module may return an MCPServer or a FastMCP, which need no options.

    It may if the module has one of them, or has imported their class. A factory of low-level servers needs
    `get_initialization_options`, and its author is to learn that when the module is loaded, not from the first user.
    """
    return any(_is_about_versioned_servers(value) for value in vars(module).values())


def _is_about_versioned_servers(value: object) -> bool:
    if inspect.isclass(value):
        return issubclass(value, (MCPServer, Version1FastMCP)) or value.__module__.partition(".")[0] == "fastmcp"
    if isinstance(value, ModuleType):
        package = value.__name__.partition(".")[0]
        return value.__name__ == "mcp" or value.__name__.startswith("mcp.server") or package == "fastmcp"
    return isinstance(value, (MCPServer, Version1FastMCP)) or is_fastmcp(value)


def _check_factory(factory: Callable[..., Any]) -> None:
    if inspect.isclass(factory):
        constructor = getattr(factory.__init__, "__module__", "")
        own = (CompatServer.__module__, Version1FastMCP.__module__)
        if constructor.partition(".")[0] in ("mcp", "fastmcp") or constructor in own:
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
