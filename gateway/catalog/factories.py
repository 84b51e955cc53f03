"""Makes the server object of one user, whatever the style of its module."""

import asyncio
import inspect
from typing import Any, Final

from mcp.server import Server
from mcp.server.models import InitializationOptions

from gateway.catalog.calling import call
from gateway.catalog.server_kinds import SERVER_KINDS, knows_its_version, low_level_server
from gateway.catalog.shared_lifespan import SharedLifespan
from gateway.catalog.styles import Style
from gateway.compat.server import CompatServer

_DEFAULT_LIFESPANS: Final = tuple(
    inspect.signature(kind).parameters["lifespan"].default for kind in (Server, CompatServer)
)
"""Values of `Server.lifespan` where the author gave none."""


async def make(style: Style, user_id: str, api_key: str | None) -> tuple[Server[Any], InitializationOptions]:
    """Return the server of one user and its initialization options. Runs on the loop that runs its handlers.

    Raises:
        TypeError: the factory or `get_initialization_options` returned something else, or the version is not known.
        BaseException: what the module's own code raised.
    """
    made = style.server
    if not style.is_shared:
        made = await call(style.server, {"user_id": user_id, "api_key": api_key})
        # A factory that took too long was cancelled meanwhile: the cancellation takes effect here.
        await asyncio.sleep(0)
    server = low_level_server(made)
    if server is None:
        raise TypeError(f"The factory returned {type(made).__name__}, not {SERVER_KINDS}.")
    if not isinstance(server.lifespan, SharedLifespan) and server.lifespan not in _DEFAULT_LIFESPANS:
        server.lifespan = SharedLifespan(server.lifespan)
    return server, await _options(style, made, server)


async def _options(style: Style, made: Any, server: Server[Any]) -> InitializationOptions:
    if style.get_initialization_options is not None:
        # The author's function gets the object that the author made, not the low-level server inside it.
        options = await call(style.get_initialization_options, {"instance": made})
        if not isinstance(options, InitializationOptions):
            raise TypeError(f"get_initialization_options returned {type(options).__name__}, not InitializationOptions.")
        return options
    if not (style.is_shared or knows_its_version(made, server)):
        raise TypeError(
            "The factory's server has no version, and main.py has no function get_initialization_options: "
            "add one of the two."
        )
    return server.create_initialization_options()
