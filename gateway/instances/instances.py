"""The instances of a host: one for each server and identity, made by the server's factory and used again.

Lives here: which instances there are, who uses them, when they expire or make room, and moving them to newer code. Not
here: their `Server` objects (`generation`) and what their sessions say (`transports`).
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from gateway import signals
from gateway.access.identity import Identity
from gateway.access.redaction import traceback_text
from gateway.catalog.definitions import ServerDefinition
from gateway.conf import conf
from gateway.exceptions import InstanceLimitReached, InstanceUnavailable
from gateway.instances.call_log import CallLog
from gateway.instances.caller_context import caller_context
from gateway.instances.calls import ServerCalls
from gateway.instances.dependencies import ServerDependencies, request_state_security
from gateway.instances.idle_instances import IdleInstances, share_of
from gateway.instances.instance import Instance, InstanceStart
from gateway.instances.lanes import Lanes
from gateway.instances.listings import Listings, ask_listing
from gateway.instances.policies import Policies
from gateway.instances.running_server import TOO_SLOW, RunningServer

if TYPE_CHECKING:
    from gateway.tracing.tracing import Tracing

logger = logging.getLogger(__name__)

_Key = tuple[str, Identity]

STOP_TIMEOUT_SECONDS: Final = 5.0
"""How long the lifespans may take to end when the host stops."""


@dataclass(slots=True)
class _Build:
    """An instance that is being made."""

    task: asyncio.Task[Instance]
    waiting: int = 0
    """How many connections wait for it."""


class Instances:
    """The instances of this process.

    Threads: used on the host's loop, except for iteration, `len`, `count_by_server` and `calls`, which any thread may
    use: the recorder's thread and those of the metrics port do.
    """

    def __init__(
        self,
        lanes: Lanes,
        listings: Listings,
        policies: Policies,
        call_log: CallLog | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        """`call_log`: where the servers' calls are noted. `tracing`: what makes spans of their messages."""
        self._call_log = call_log or CallLog(keeps_calls=False)
        self._tracing = tracing
        self._lanes = lanes
        self._listings = listings
        self._policies = policies
        self._request_state = request_state_security()
        self._dependencies: dict[str, ServerDependencies] = {}
        self._ready: dict[_Key, Instance] = {}
        self._idle = IdleInstances()
        """The ready instances that nobody uses."""
        self._builds: dict[_Key, _Build] = {}
        self._newest: dict[str, ServerDefinition] = {}
        """The code that all instances of a server shall run."""
        self._drops: Counter[str] = Counter()
        """How often the instances of a server were dropped."""
        self._switches: dict[str, asyncio.Lock] = {}

    # -- Use ---------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def use(self, definition: ServerDefinition, identity: Identity, address: str = "") -> AsyncIterator[Instance]:
        """The instance of `identity`. It is made on first use, and does not expire inside the block.

        `address` is the client's IP address; empty if it has none. Where keys are not checked, a new instance takes its
        room from the share of this address first.

        Raises:
            InstanceUnavailable: it could not be made. The next use tries again.
            InstanceLimitReached: the host has as many instances as it may have, and all of them are in use.
        """
        instance = await self.acquire(definition, identity, address)
        try:
            yield instance
        finally:
            self.release(instance)

    async def acquire(self, definition: ServerDefinition, identity: Identity, address: str = "") -> Instance:
        """The same without a block: the instance is in use until `release`. Raises what `use` raises."""
        key = (definition.name, identity)
        instance = self._ready.get(key)
        # Open sessions keep an instance that is lost: their next request replaces what is lost of it.
        if instance is not None and instance.running.is_lost and not instance.uses:
            self._let_go(instance)
            instance = None
        if instance is not None:
            self._idle.discard(instance)
            instance.uses += 1
            return instance
        build = self._builds.get(key) or self._start_build(key, definition, address)
        build.waiting += 1
        try:
            # Shielded: others may wait for the same instance when this caller leaves.
            return await asyncio.shield(build.task)
        except asyncio.CancelledError:
            build.waiting -= 1
            if build.task.done() and not build.task.cancelled() and build.task.exception() is None:
                self.release(build.task.result())
            raise

    def release(self, instance: Instance) -> None:
        """End the use of an acquired instance."""
        instance.uses -= 1
        if not instance.uses:
            self._note_idle(instance)

    def _note_idle(self, instance: Instance) -> None:
        if self._ready.get(_key(instance)) is instance:  # it may have been dropped meanwhile
            instance.idle_since = time.monotonic()
            self._idle.add(instance)

    def _make_room(self) -> None:
        """End idle instances if the host is full.

        Raises:
            InstanceLimitReached: no instance is idle.
        """
        while len(self) >= conf.max_instances:
            instance = self._idle.pop()
            if instance is None:
                raise InstanceLimitReached("The host is full. Try again later.")
            del self._ready[_key(instance)]
            instance.running.retire()

    # -- Making them -------------------------------------------------------------------------------------------------

    def _start_build(self, key: _Key, definition: ServerDefinition, address: str) -> _Build:
        self._make_room()
        task = asyncio.create_task(self._build(key, definition, address))
        # Each waiter handles its failure. If none is left, nobody needs to.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        build = self._builds[key] = _Build(task)
        return build

    async def _build(self, key: _Key, definition: ServerDefinition, address: str) -> Instance:
        name, identity = key
        drops = self._drops[name]
        try:
            running = await self._start(definition, identity)
            # Meanwhile the server may have got newer code.
            while (newest := self._newest.get(name, definition)) is not running.definition:
                try:
                    await self._switch_one(running, newest)
                except (TimeoutError, InstanceUnavailable):
                    break
            if self._drops[name] != drops:
                running.stop()
                raise InstanceUnavailable("The server was taken away meanwhile. Try again later.")
        finally:
            build = self._builds.pop(key)
        instance = self._ready[key] = Instance(name, identity, running, share_of(identity, address), uses=build.waiting)
        if not instance.uses:  # all who waited for it have left
            self._note_idle(instance)
        if self._listings.get(name) is None:
            self._start_listing(instance)
        return instance

    async def _start(self, definition: ServerDefinition, identity: Identity) -> RunningServer:
        name, seconds = definition.name, conf.factory_timeout_seconds
        lane, start = self._lanes.get(name), InstanceStart()
        try:
            async with asyncio.timeout(seconds):
                return await lane.run(start.run(definition, identity, lane, self.dependencies(name)))
        except TimeoutError:
            logger.error("Server %s gave no instance within %s seconds", name, seconds)
            # The server may still have started, just as its start was cancelled.
            start.give_up()
            raise InstanceUnavailable(TOO_SLOW) from None

    def dependencies(self, server_name: str) -> ServerDependencies:
        """What the instances of one server share."""
        found = self._dependencies.get(server_name)
        if found is None:
            calls = ServerCalls(server_name, self._listings, self._policies, self._call_log)
            found = self._dependencies[server_name] = ServerDependencies(calls, self._request_state, self._tracing)
        return found

    @property
    def calls(self) -> list[ServerCalls]:
        """The calls of every server that has had an instance."""
        return [dependencies.calls for dependencies in list(self._dependencies.values())]

    def _start_listing(self, instance: Instance) -> None:
        """Ask an instance's server for its whole listing, whatever its caller's key allows."""
        # The context still has an identity, so that log redaction knows the key.
        context = caller_context(instance.server_name, replace(instance.identity, grant=None))
        lane = instance.lane
        lane.post(lambda: lane.loop.create_task(self._ask_listing(instance), context=context))

    async def _ask_listing(self, instance: Instance) -> None:
        """Runs in the lane."""
        name, running = instance.server_name, instance.running
        try:
            listing = await ask_listing(running.server, running.lifespan_state)
        except Exception as error:  # a list handler's own failure
            text = traceback_text(error, instance.identity.api_key)
            logger.warning("Server %s could not be asked for its lists: %s", name, text)
            return
        self._listings.learn(name, listing)
        signals.listing_learned.send_robust(Instances, server_name=name, listing=listing)

    # -- New code ----------------------------------------------------------------------------------------------------

    def expect(self, definition: ServerDefinition) -> None:
        """From now on all new instances of a server run this code, including those that are being made."""
        self._newest[definition.name] = definition
        self.dependencies(definition.name).calls.threads.renew()

    async def switch(self, definition: ServerDefinition) -> int:
        """Move the instances of a server to the code that is expected. Returns how many could not be moved.

        Changes nothing if newer code is expected by now.
        """
        name = definition.name
        failures = 0
        switched: Instance | None = None
        # One switch at a time: if two overlapped, the older code could be the last to be ready and stay in use.
        async with self._switches.setdefault(name, asyncio.Lock()):
            for key in [key for key in self._ready if key[0] == name]:
                instance = self._ready.get(key)
                if instance is None or self._newest.get(name) is not definition:
                    continue
                if instance.running.definition is definition:
                    continue
                try:
                    await self._switch_one(instance.running, definition)
                except (TimeoutError, InstanceUnavailable):
                    failures += 1
                else:
                    switched = instance
                if self._ready.get(key) is not instance:
                    instance.running.stop()  # it was let go meanwhile
        if switched is not None:
            self._start_listing(switched)
        return failures

    async def _switch_one(self, running: RunningServer, definition: ServerDefinition) -> None:
        async with asyncio.timeout(conf.factory_timeout_seconds):
            await running.lane.run(running.switch(definition))

    # -- The end of instances ----------------------------------------------------------------------------------------

    def drop(self, server_name: str) -> None:
        """Stop all instances of a server, including those that are being made."""
        self._drops[server_name] += 1
        for key in [key for key in self._ready if key[0] == server_name]:
            self._let_go(self._ready[key])

    def _let_go(self, instance: Instance) -> None:
        del self._ready[_key(instance)]
        self._idle.discard(instance)
        instance.running.stop()

    def expire(self) -> int:
        """Stop the instances that have been idle for too long or whose key was revoked. Returns how many."""
        oldest = time.monotonic() - conf.instance_idle_seconds
        over = [instance for instance in self._idle if instance.idle_since < oldest or instance.identity.is_revoked]
        for instance in over:
            self._let_go(instance)
        return len(over)

    def keep_up(self) -> None:
        """Expire instances and keep up the servers' threads. Call it regularly."""
        self.expire()
        for calls in self.calls:
            calls.threads.keep_up()

    async def stop(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """Stop all instances, and wait for their lifespans to end, for at most `timeout_seconds`."""
        instances = list(self._ready.values())
        self._ready.clear()
        self._idle.clear()
        for instance in instances:
            instance.running.stop()
        stopped = await asyncio.gather(*(instance.running.wait_stopped(timeout_seconds) for instance in instances))
        if not all(stopped):
            logger.warning("The lifespans of %d instances did not end in time", stopped.count(False))
        for calls in self.calls:
            calls.threads.close()

    # -- What operators see ------------------------------------------------------------------------------------------

    def count_by_server(self) -> Counter[str]:
        """How many instances each server has."""
        return Counter(server_name for server_name, _ in list(self._ready))

    def __iter__(self) -> Iterator[Instance]:
        return iter(list(self._ready.values()))

    def __len__(self) -> int:
        return len(self._ready) + len(self._builds)


def _key(instance: Instance) -> _Key:
    return instance.server_name, instance.identity
