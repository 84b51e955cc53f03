"""A version 1 lifespan on the home loop, held by a task of the server's lane."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from gateway.compat.errors import HomeLoopLostError
from gateway.compat.handler_threads import HandlerThreads
from gateway.compat.loop_threads import HandlerLoop

Variables = tuple[tuple[contextvars.ContextVar[Any], Any], ...]
"""Context variables that a lifespan has set, and their values."""


@asynccontextmanager
async def lifespan_on_home_loop(
    threads: HandlerThreads, open_lifespan: Callable[[], AbstractAsyncContextManager[Any]]
) -> AsyncIterator[tuple[Any, Variables]]:
    """Enter a lifespan on the home loop; the value is its state and the context variables that it has set.

    One task of the home loop enters and leaves it. If it ends by itself, the task that holds it here is interrupted,
    and what the lifespan raised is raised here.
    """
    lifespan = _HomeLifespan(threads, open_lifespan)
    try:
        entered = await lifespan.entered
        lifespan.holder = asyncio.current_task()
        try:
            yield entered
        except asyncio.CancelledError:
            # Somebody else may have cancelled the task as well.
            if not lifespan.was_interrupted or _uncancel():
                raise
        finally:
            lifespan.holder = None
    finally:
        await lifespan.leave()


class _HomeLifespan:
    """The task that holds the lifespan, and its connection to the lane. In the lane, except where it says otherwise."""

    def __init__(self, threads: HandlerThreads, open_lifespan: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._threads = threads
        self._open = open_lifespan
        self._lane = asyncio.get_running_loop()
        self.entered: asyncio.Future[tuple[Any, Variables]] = self._lane.create_future()
        self.holder: asyncio.Task[Any] | None = None
        """The task that is to be interrupted if the lifespan ends by itself."""
        self.was_interrupted = False
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None
        self._is_leaving = False
        self._loop: HandlerLoop = threads.use_home(self)
        self._leaving: asyncio.Event | None = None  # of the home loop
        self._task: asyncio.Task[None] | None = None  # of the home loop
        self._loop.call_soon_threadsafe(self._start, contextvars.copy_context())

    async def leave(self) -> None:
        """Leave the lifespan, or give up entering it, and wait for that. Raises what it raised."""
        self._is_leaving = True
        if not self._ended.is_set():
            self._loop.call_soon_threadsafe(self._leave, self._was_entered)
            await self._ended.wait()
        # A failure to enter was raised where `entered` was awaited.
        if self._failure is not None and self._was_entered:
            raise self._failure

    @property
    def _was_entered(self) -> bool:
        return self.entered.done() and not self.entered.cancelled() and self.entered.exception() is None

    def lose_loop(self) -> None:
        """The home loop was replaced. Any thread."""
        error = HomeLoopLostError("A call blocked the server's event loop, which had to be replaced.")
        self._lane.call_soon_threadsafe(self._note_end, error)
        self._loop.call_soon_threadsafe(self._leave, True)

    def _note_entered(self, state: Any, variables: Variables) -> None:
        if not self.entered.done():
            self.entered.set_result((state, variables))

    def _note_end(self, error: BaseException | None) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        if not self._is_leaving and error is None:
            error = RuntimeError("The lifespan ended by itself.")
        self._failure = error
        if not self.entered.done():
            self.entered.set_exception(error or RuntimeError("The lifespan ended by itself."))
        elif self.holder is not None and not self._is_leaving:
            self.was_interrupted = True
            self.holder.cancel()

    # -- In the home loop

    def _start(self, context: contextvars.Context) -> None:
        self._leaving = asyncio.Event()
        self._task = self._loop.create_task(self._hold(self._leaving), context=context)

    async def _hold(self, leaving: asyncio.Event) -> None:
        error: BaseException | None = None
        before = contextvars.copy_context()
        try:
            async with self._open() as state:
                variables = tuple(
                    (variable, value)
                    for variable, value in contextvars.copy_context().items()
                    if variable not in before or before[variable] is not value
                )
                self._tell(self._note_entered, state, variables)
                await leaving.wait()
        except Exception as exc:
            error = exc
        except BaseException as exc:
            # asyncio would let SystemExit out of the loop, which other calls use as well.
            error = RuntimeError(f"The lifespan ended with {type(exc).__name__}: {exc}")
            error.__cause__ = exc
        finally:
            self._threads.release_home(self)
            self._tell(self._note_end, error)

    def _leave(self, was_entered: bool) -> None:
        if was_entered and self._leaving is not None:
            self._leaving.set()
        elif self._task is not None:
            self._task.cancel()

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        if not self._lane.is_closed():
            self._lane.call_soon_threadsafe(callback, *arguments)


def _uncancel() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.uncancel()
