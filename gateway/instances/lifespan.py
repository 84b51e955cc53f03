"""The lifespan of one `Server` object: entered, held open and left by one task, as a context manager requires."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Self

from mcp.server import Server

from gateway.access.redaction import traceback_text
from gateway.compat.server import CompatServer

logger = logging.getLogger(__name__)


class OpenLifespan:
    """A lifespan that has been entered.

    Threads: used in the lane, except for `is_lost`, which any thread may read.
    """

    # A future and a flag take a fifth of the memory of an `asyncio.Event`, and there is one of these for each instance.
    __slots__ = ("_is_leaving", "_task", "_wake", "is_lost", "state")

    def __init__(self) -> None:
        self.state: Any = None
        """What the lifespan yielded."""
        self.is_lost = False
        """Whether the lifespan ended by itself, so that its state cannot be used any more."""
        self._is_leaving = False
        self._wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends the wait for `leave`."""
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def enter(
        cls, server: Server[Any], server_name: str, api_key: str | None, on_left: Callable[[], object]
    ) -> Self:
        """Enter the lifespan of `server`. Raises whatever it raises.

        `on_left` is called in the lane when the lifespan has been left, or could not be entered. `api_key` is the
        caller's key, which must not appear in the log.
        """
        lifespan = cls()
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lifespan._task = asyncio.create_task(lifespan._hold(server, server_name, api_key, entered))
        lifespan._task.add_done_callback(lambda _: on_left())
        try:
            await entered
        except asyncio.CancelledError:
            lifespan._task.cancel()
            raise
        return lifespan

    def leave(self) -> None:
        """Leave the lifespan. Does not wait for it, nor for what still uses it."""
        self._is_leaving = True
        if not self._wake.done():
            self._wake.set_result(None)

    def tell_when_left(self, left: "Future[None]") -> None:
        """Complete `left` when the lifespan has been left."""
        assert self._task is not None
        self._task.add_done_callback(lambda _: _complete(left))

    async def _hold(
        self, server: Server[Any], server_name: str, api_key: str | None, entered: "asyncio.Future[None]"
    ) -> None:
        """Hold the lifespan open until `leave`, or until it ends by itself."""
        try:
            lifespan = server.open_lifespan() if isinstance(server, CompatServer) else server.lifespan(server)
            async with lifespan as self.state:
                if not entered.done():
                    entered.set_result(None)
                try:
                    await self._wake
                finally:
                    self.is_lost = not self._is_leaving
        except asyncio.CancelledError:
            raise
        # The server's own code: what it raises affects this instance only.
        except BaseException as error:
            if not entered.done():
                entered.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
                return
            how = "ended by itself and is entered again with the next use" if self.is_lost else "failed as it ended"
            text = traceback_text(error, api_key)
            logger.error("The lifespan of an instance of %s %s: %s", server_name, how, text)


def _complete(future: "Future[None]") -> None:
    with suppress(InvalidStateError):  # a cancelled wait for the future has cancelled it too
        future.set_result(None)
