"""Styles of server modules: from whatever a module calls `server` to a low-level `Server` and its options.

`server` may be a factory, plain or async, that takes `(user_id, api_key)` or less, or an object that all users share.
An object, and what a factory returns, may be the SDK's low-level `Server`, its `MCPServer`, or a `FastMCP` of the
FastMCP package. Lives here: telling these apart, calling factories, what an object knows about itself, one lifespan
for an object that is used more than once. Not here: how a module is loaded (`discovery`) and who holds what was made
(`instances`).
"""

import asyncio
import contextvars
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from inspect import BoundArguments, Parameter, Signature
from types import ModuleType
from typing import Any, Final

from mcp.server import MCPServer, Server
from mcp.server.models import InitializationOptions

from gateway.compat.server import CompatServer

_NO_LIFESPANS: Final = tuple(inspect.signature(kind).parameters["lifespan"].default for kind in (Server, CompatServer))
"""What `Server.lifespan` is where the author gave none."""

_ANYTHING: Final = Signature(
    [Parameter("arguments", Parameter.VAR_POSITIONAL), Parameter("named_arguments", Parameter.VAR_KEYWORD)]
)

_SERVER_KINDS: Final = "an mcp.server.Server, an MCPServer or a FastMCP"


class UnusableServer(Exception):
    """What a module calls `server` is of no style we know; the message is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Style:
    """How one module makes its servers."""

    server: Any
    """A factory, or the object that all users share."""
    get_initialization_options: Callable[..., Any] | None
    """May be missing: then the object is asked for its name and version."""
    is_shared: bool
    """Whether `server` is an object. It is never changed for one user."""


def describe(module: ModuleType) -> Style:
    """Find out how `module` makes its servers.

    Neither of its two functions is called, but looking at what a module has may run its code: its `__getattr__`, the
    `__class__` of a lazy object, a `__signature__`.

    Raises:
        UnusableServer: `server` is no factory that can be called and no server, or the options are missing and the
            object has no version. What a factory makes is judged by `make`.
        BaseException: what the module's own code raised.
    """
    server = getattr(module, "server", None)
    get_options = getattr(module, "get_initialization_options", None)
    if server is None:
        raise UnusableServer("main.py has no function server, and no server object of that name.")
    if get_options is not None:
        if not callable(get_options):
            raise UnusableServer("main.py has no function get_initialization_options: what has that name is none.")
        _check_parameters("get_initialization_options", get_options, {"instance": None})
    try:
        shared = _low_level(server)
    except TypeError as error:
        raise UnusableServer(str(error)) from None
    if shared is None:
        _check_factory(server)
        if get_options is None and not _may_make_what_knows_itself(module):
            raise UnusableServer("main.py has no function get_initialization_options.")
    elif get_options is None and not _knows_itself(server, shared):
        raise UnusableServer(
            "main.py has no function get_initialization_options, and its server has no version: add one of the two."
        )
    return Style(server, get_options, is_shared=shared is not None)


async def make(style: Style, user_id: str, api_key: str | None) -> tuple[Server[Any], InitializationOptions]:
    """Return the server of one user and what it says about itself. Runs in the server's lane.

    Raises:
        TypeError: the factory or `get_initialization_options` returned something else, or nobody knows the version.
        BaseException: what the module's own code raised.
    """
    made = style.server
    if not style.is_shared:
        made = await _call(style.server, {"user_id": user_id, "api_key": api_key})
        # A factory that overran its time was cancelled meanwhile: the next line is where that takes effect.
        await asyncio.sleep(0)
    server = _low_level(made)
    if server is None:
        raise TypeError(f"The factory returned {type(made).__name__}, not {_SERVER_KINDS}.")
    if not isinstance(server.lifespan, SharedLifespan) and server.lifespan not in _NO_LIFESPANS:
        server.lifespan = SharedLifespan(server.lifespan)
    return server, await _options(style, made, server)


async def _options(style: Style, made: Any, server: Server[Any]) -> InitializationOptions:
    if style.get_initialization_options is not None:
        # The author's function gets what the author made, not what is inside of it.
        options = await _call(style.get_initialization_options, {"instance": made})
        if not isinstance(options, InitializationOptions):
            raise TypeError(
                f"get_initialization_options returned {type(options).__name__}, not an InitializationOptions."
            )
        return options
    if not _knows_itself(made, server):
        raise TypeError(
            "The factory's server has no version, and main.py has no function get_initialization_options: "
            "add one of the two."
        )
    return server.create_initialization_options()


def _low_level(made: object) -> Server[Any] | None:
    """The low-level server of an object, or None if it has none.

    Raises:
        TypeError: the installed SDK or FastMCP keeps it somewhere else than the versions we know.
    """
    if isinstance(made, Server):
        return made
    if isinstance(made, MCPServer):
        # Private in mcp 2.3.0, which has nothing public for it; the SDK's own Client reads it too.
        inner, package = getattr(made, "_lowlevel_server", None), "mcp"
    elif _is_fastmcp(made):
        # Private in fastmcp 4.1.2, which has nothing public for it either.
        inner, package = getattr(made, "_mcp_server", None), "fastmcp"
    else:
        return None
    if not isinstance(inner, Server):
        raise TypeError(f"This version of the package {package} keeps the server of a {type(made).__name__} elsewhere.")
    return inner


def _is_fastmcp(made: object) -> bool:
    # Not imported: who made a FastMCP has loaded this module, for everybody else it would cost a second and 40 MB.
    fastmcp = sys.modules.get("fastmcp.server.server")
    kind = getattr(fastmcp, "FastMCP", None)
    return isinstance(kind, type) and isinstance(made, kind)


def _knows_itself(made: object, server: Server[Any]) -> bool:
    # An MCPServer or a FastMCP is complete as it is, and an empty version is how the SDK says "unversioned".
    return bool(server.version) or made is not server


def _may_make_what_knows_itself(module: ModuleType) -> bool:
    """Whether a factory of this module may return an MCPServer or a FastMCP: it has one, or their class, at hand.

    A factory of low-level servers needs `get_initialization_options`, and its author is to learn so at once rather than
    from the first user.
    """
    return any(_offers_what_knows_itself(value) for value in vars(module).values())


def _offers_what_knows_itself(value: object) -> bool:
    if inspect.isclass(value):
        return issubclass(value, MCPServer) or value.__module__.partition(".")[0] == "fastmcp"
    if isinstance(value, ModuleType):
        package = value.__name__.partition(".")[0]
        return value.__name__ == "mcp" or value.__name__.startswith("mcp.server") or package == "fastmcp"
    return isinstance(value, MCPServer) or _is_fastmcp(value)


# -- calling what an author wrote


def _check_factory(factory: object) -> None:
    if not callable(factory):
        raise UnusableServer(
            f"main.py has no function server: what has that name is of type {type(factory).__name__}, "
            f"neither a factory nor {_SERVER_KINDS}."
        )
    if inspect.isclass(factory):
        constructor = getattr(factory.__init__, "__module__", "")
        if constructor.partition(".")[0] in ("mcp", "fastmcp") or constructor == CompatServer.__module__:
            # Its first parameter is the server's name: a user's id must not become that.
            raise UnusableServer(
                f"server is the class {factory.__name__} with a constructor that is not made for user_id and api_key: "
                "call it, or write a function that does."
            )
    _check_parameters("server", factory, {"user_id": None, "api_key": None})


def _check_parameters(name: str, function: Callable[..., Any], offered: Mapping[str, Any]) -> None:
    try:
        _bind(function, offered)
    except TypeError as error:
        raise UnusableServer(f"{name} cannot be called: {error}") from None


async def _call(function: Callable[..., Any], offered: Mapping[str, Any]) -> Any:
    bound = _bind(function, offered)
    result = function(*bound.args, **bound.kwargs)
    return await result if inspect.isawaitable(result) else result


def _bind(function: Callable[..., Any], offered: Mapping[str, Any]) -> BoundArguments:
    """Choose which of the offered values a function gets: by name, and the others in their order.

    A parameter of another name takes the next value that no parameter is named after; one with a default of its own
    (neither None nor empty text) keeps that. What is left goes to `*args`, or by name to `**kwargs`, or nowhere.

    Raises:
        TypeError: the function needs more than is offered.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # a callable of C without a signature
        signature = _ANYTHING
    rest = {name: value for name, value in offered.items() if not _takes(signature, name)}
    arguments: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        is_required = parameter.default is Parameter.empty
        if parameter.kind is Parameter.VAR_POSITIONAL:
            arguments[name] = tuple(rest.values())
            rest = {}
        elif parameter.kind is Parameter.VAR_KEYWORD:
            arguments[name] = rest
        elif name in offered:
            arguments[name] = offered[name]
        elif (
            rest
            and parameter.kind is not Parameter.KEYWORD_ONLY
            and (is_required or parameter.default is None or _is_empty_text(parameter.default))
        ):
            arguments[name] = rest.pop(next(iter(rest)))
        elif is_required:
            raise TypeError(f"nothing is known to give to its parameter {name}.")
    return BoundArguments(signature, arguments)


def _is_empty_text(value: object) -> bool:
    return isinstance(value, str) and not value


def _takes(signature: Signature, name: str) -> bool:
    parameter = signature.parameters.get(name)
    return parameter is not None and parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


# -- one lifespan for an object that several instances use


class SharedLifespan:
    """The lifespan of one server object, however many hold it: entered with the first, left with the last.

    An object that all users share is to be set up once. FastMCP needs it so: its lifespan counts who entered it, and
    is over for all of them when the first one leaves (fastmcp 4.1.2, `LifespanMixin._lifespan_manager`).

    One that ends by itself, as when a task of its task group fails, is over for all who hold it: their tasks are
    cancelled and leave it, and the last one gets what it raised. Whoever comes later enters it anew.
    """

    def __init__(self, lifespan: Callable[[Server[Any]], AbstractAsyncContextManager[Any]]) -> None:
        self._lifespan = lifespan
        self._kept: dict[asyncio.AbstractEventLoop, _KeptLifespan] = {}

    @asynccontextmanager
    async def __call__(self, server: Server[Any]) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        # The last user may be leaving just now: what is being torn down is not entered again.
        while (kept := self._kept.get(loop)) is not None and (kept.is_over or not kept.users):
            await asyncio.wait({kept.task})
            self._forget(loop, kept)
        if kept is None:
            kept = self._kept[loop] = _KeptLifespan(self._lifespan(server))
        kept.users += 1
        try:
            state = await asyncio.shield(kept.state)
            with kept.held():
                yield state
        finally:
            kept.users -= 1
            if not kept.users:
                try:
                    await kept.end()
                finally:
                    self._forget(loop, kept)

    def _forget(self, loop: asyncio.AbstractEventLoop, kept: "_KeptLifespan") -> None:
        if self._kept.get(loop) is kept:
            del self._kept[loop]


class _KeptLifespan:
    """A task that holds a lifespan open. It is entered and left by the same task, whoever comes and goes."""

    def __init__(self, manager: AbstractAsyncContextManager[Any]) -> None:
        self.users = 0
        self.state: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.is_over = False
        """Whether it has ended by itself, or is about to."""
        self._holders: set[asyncio.Task[Any]] = set()
        self._unused = asyncio.Event()
        self._failure: BaseException | None = None
        # In a context of its own: it must not see who happened to be the first user.
        self.task = asyncio.create_task(self._hold(manager), context=contextvars.Context())

    async def _hold(self, manager: AbstractAsyncContextManager[Any]) -> None:
        try:
            async with manager as state:
                self.state.set_result(state)
                try:
                    await self._unused.wait()
                finally:
                    self._tell_holders()
            if self.is_over:
                raise RuntimeError("The lifespan ended by itself.")
        except asyncio.CancelledError:
            self.state.cancel()
            raise
        # Foreign code; whoever waits for it gets what it raised.
        except BaseException as error:
            if self.state.done():
                self._failure = error
            else:
                self.state.set_exception(error)

    def _tell_holders(self) -> None:
        if not self._unused.is_set():
            self.is_over = True
            for task in self._holders:
                task.cancel()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lifespan inside the block, which is interrupted when it ends by itself."""
        task = asyncio.current_task()
        assert task is not None
        self._holders.add(task)
        if self.is_over:
            task.cancel()
        try:
            yield
        except asyncio.CancelledError:
            # Somebody else may have cancelled the task as well.
            if not self.is_over or task.uncancel():
                raise
        finally:
            self._holders.discard(task)

    async def end(self) -> None:
        """Leave the lifespan, or give up entering it, and wait for that. Raises what it raised."""
        if self.state.done():
            self._unused.set()
        else:
            self.task.cancel()
        try:
            await asyncio.wait({self.task})
        except asyncio.CancelledError:
            self.task.cancel()
            raise
        if self._failure is not None:
            raise self._failure
