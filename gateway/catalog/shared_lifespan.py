"""One lifespan for a server object that several instances use."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

from mcp.server import Server


class SharedLifespan:
    """The lifespan of one server object: entered with the first instance that uses it, left with the last.

    An object that all users share must be set up once. FastMCP needs this too: its own lifespan ends for all users when
    the first of them leaves (fastmcp 4.1.2, `LifespanMixin._lifespan_manager`).

    A lifespan may end by itself, for example because a task of its task group fails. Then it has ended for all of its
    users: their tasks are cancelled, and the last one gets the exception. The next user enters the lifespan anew.
    """

    def __init__(self, lifespan: Callable[[Server[Any]], AbstractAsyncContextManager[Any]]) -> None:
        self._lifespan = lifespan
        self._kept: dict[asyncio.AbstractEventLoop, _KeptLifespan] = {}

    @asynccontextmanager
    async def __call__(self, server: Server[Any]) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        # The last user may be leaving just now: wait until the old lifespan has ended.
        while (kept := self._kept.get(loop)) is not None and (kept.is_over or not kept.users):
            await asyncio.wait({kept.task})
            self._forget(loop, kept)
        if kept is None:
            kept = self._kept[loop] = _KeptLifespan(self._lifespan(server))
        kept.users += 1
        try:
            state = await asyncio.shield(kept.state)
            for variable, value in kept.variables:
                variable.set(value)  # as if the lifespan had run in this task
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
    """Holds a lifespan open in a task of its own, so that the same task enters and leaves it."""

    def __init__(self, manager: AbstractAsyncContextManager[Any]) -> None:
        self.users = 0
        self.state: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.is_over = False
        """Whether the lifespan has ended by itself, or is about to."""
        self.variables: list[tuple[contextvars.ContextVar[Any], Any]] = []
        """The context variables that the lifespan has set."""
        self._holders: set[asyncio.Task[Any]] = set()
        self._unused = asyncio.Event()
        self._failure: BaseException | None = None
        # In an empty context: it must not see the first user's context variables.
        self.task = asyncio.create_task(self._hold(manager), context=contextvars.Context())

    async def _hold(self, manager: AbstractAsyncContextManager[Any]) -> None:
        try:
            async with manager as state:
                self.variables = list(contextvars.copy_context().items())
                self.state.set_result(state)
                try:
                    await self._unused.wait()
                finally:
                    self._cancel_holders()
            if self.is_over:
                raise RuntimeError("The lifespan ended by itself.")
        except asyncio.CancelledError:
            self.state.cancel()
            raise
        # Foreign code. Its exception goes to whoever waits for the lifespan.
        except BaseException as error:
            if self.state.done():
                self._failure = error
            else:
                self.state.set_exception(error)

    def _cancel_holders(self) -> None:
        if not self._unused.is_set():
            self.is_over = True
            for task in self._holders:
                task.cancel()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lifespan inside the block. The block is cancelled if the lifespan ends by itself."""
        task = asyncio.current_task()
        assert task is not None
        self._holders.add(task)
        if self.is_over:
            task.cancel()
        try:
            yield
        except asyncio.CancelledError:
            # The task may have been cancelled for another reason as well.
            if not self.is_over or task.uncancel():
                raise
        finally:
            self._holders.discard(task)

    async def end(self) -> None:
        """Leave the lifespan, or stop entering it, and wait until that is done. Raises what the lifespan raised."""
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
