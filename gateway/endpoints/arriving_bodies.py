"""Bounds for requests on other ASGI servers than our Daphne: how their bodies arrive, and how many are open at once.

Our Daphne has these bounds itself, on the wire (`serving.connection`, `serving.chunks`), and hands over whole bodies.
An application sees less: nothing of connections without a request, nothing of heads that are not whole, and several
chunks as one part if they came together.
"""

import asyncio
import time
from collections import Counter
from typing import Any, Final

from gateway.exceptions import BodyTimeout, TooManyConnections, WastefulBody
from gateway.http.addresses import counted_address
from gateway.http.asgi import Message, Receive
from gateway.serving.chunks import CHUNK_COST_BYTES, FREE_FRAMING_BYTES
from gateway.serving.limits import ServingLimits

LOOK_SECONDS: Final = 1.0
"""How often it is looked for bodies that are late. One clock for all costs less than a timer for each request."""


class ArrivingBodies:
    """The bodies that are waited for now. Used on the host's loop."""

    def __init__(self, limits: ServingLimits | None = None, look_seconds: float = LOOK_SECONDS) -> None:
        self.limits = limits or ServingLimits()
        self._look_seconds = look_seconds
        self._awaited: set[ArrivingBody] = set()
        self._is_looking = False

    def add(self, body: "ArrivingBody") -> None:
        """Watch that `body` comes in time."""
        self._awaited.add(body)
        if not self._is_looking:
            self._is_looking = True
            asyncio.get_running_loop().call_later(self._look_seconds, self._look)

    def discard(self, body: "ArrivingBody") -> None:
        """Watch it no more: a part has come."""
        self._awaited.discard(body)

    def _look(self) -> None:
        now = time.monotonic()
        for body in self._awaited:
            body.give_up_if_late(now)
        self._is_looking = bool(self._awaited)
        if self._is_looking:
            asyncio.get_running_loop().call_later(self._look_seconds, self._look)


class ArrivingBody:
    """The `receive` of a request whose body must not come too slowly, nor in too many parts for its size."""

    __slots__ = ("_bodies", "_bytes", "_is_late", "_is_whole", "_parts", "_receive", "_started_at", "_task")

    def __init__(self, receive: Receive, bodies: ArrivingBodies) -> None:
        self._receive = receive
        self._bodies = bodies
        self._task: asyncio.Task[Any] | None = None
        """What waits for the next part."""
        self._started_at = 0.0
        self._is_late = False
        self._is_whole = False
        self._bytes = 0
        self._parts = 0

    async def __call__(self) -> Message:
        """The next message.

        Raises:
            BodyTimeout, WastefulBody: the body is given up.
        """
        if self._is_whole:
            return await self._receive()
        self._task = asyncio.current_task()
        self._started_at = self._started_at or time.monotonic()
        self._bodies.add(self)
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            # Somebody else may have cancelled the task as well.
            if self._is_late and self._task is not None and not self._task.uncancel():
                raise BodyTimeout from None
            raise
        finally:
            self._bodies.discard(self)
        if not message.get("more_body", False):
            self._is_whole = True
            return message
        self._parts += 1
        self._bytes += len(message.get("body", b""))
        if self._parts * CHUNK_COST_BYTES > FREE_FRAMING_BYTES + self._bytes:
            raise WastefulBody
        return message

    def give_up_if_late(self, now: float) -> None:
        """End the wait for the next part if the body comes too slowly."""
        limits = self._bodies.limits
        seconds = limits.body_grace_seconds + self._bytes / limits.body_bytes_per_second
        if now - self._started_at > min(seconds, limits.body_timeout_seconds) and not self._is_late:
            assert self._task is not None
            self._is_late = True
            self._task.cancel()


class OpenRequests:
    """The requests that are being answered, by address. Used on the host's loop."""

    def __init__(self, *, at_most: int, of_an_address: int) -> None:
        self._at_most = at_most
        self._of_an_address = of_an_address
        self._by_address: Counter[str] = Counter()
        self._open = 0

    def enter(self, address: str) -> str:
        """Count a request. Returns what `leave` is to be told.

        Raises:
            TooManyConnections: too many are open.
        """
        counted = counted_address(address)
        of_address = self._by_address.get(counted, 0)
        if self._open >= self._at_most or of_address >= self._of_an_address:
            raise TooManyConnections
        self._open += 1
        self._by_address[counted] = of_address + 1
        return counted

    def leave(self, counted: str) -> None:
        """Count a request no more."""
        self._open -= 1
        left = self._by_address[counted] - 1
        if left:
            self._by_address[counted] = left
        else:
            del self._by_address[counted]
