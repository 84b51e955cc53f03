"""Instances: one for each (server, identity), made by the server's factory, reused, expired, let go to make room.

Lives here: which there are, who uses them, and moving them to newer code. Not here: their `Server` objects
(`generation`), what their sessions say (`transports`).

Threads: every public method is called on the host's loop; what runs in the lane is marked.
"""

import asyncio
import contextlib
import contextvars
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, cast
from uuid import uuid4

from django.conf import settings
from django.utils.crypto import salted_hmac
from mcp.server import Server
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.request_state import RequestStateSecurity
from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR

from gateway import signals
from gateway.access.identity import Identity, current_identity
from gateway.access.redaction import traceback_text
from gateway.catalog.definitions import ServerDefinition
from gateway.conf import conf
from gateway.exceptions import InstanceLimitReached, InstanceUnavailable
from gateway.instances.calls import ServerCalls
from gateway.instances.generation import Generation, ServerFront, Surroundings
from gateway.instances.lanes import Lane, Lanes
from gateway.instances.offers import Offers, ask_offer
from gateway.instances.policies import Policies
from gateway.instances.running_server import RunningServer

logger = logging.getLogger(__name__)

_Key = tuple[str, Identity]

_STOP_TIMEOUT_SECONDS: Final = 5.0
"""How long an instance's lifespan may take to end."""

_TOO_SLOW: Final = "The server took too long to start for this user. Try again."

_UNAVAILABLE: Final = "The server could not be started for this user. Its operator finds the reason in the log."


@dataclass(slots=True)
class Activity:
    """Stateless requests of one instance: they have no session to be counted in."""

    requests: int = 0
    calls: int = 0
    last: float = 0.0
    """Seconds since the epoch of the last one; 0 before the first."""

    def note(self, is_call: bool) -> None:
        """Count one request."""
        self.requests += 1
        self.calls += is_call
        self.last = time.time()


class Instance:
    """One server of one identity, alive in its server's lane."""

    def __init__(
        self, definition: ServerDefinition, identity: Identity, lane: Lane, surroundings: Surroundings
    ) -> None:
        self.server_name = definition.name
        self.identity = identity
        self.lane = lane
        self.row_id = uuid4()
        """What operators see."""
        self.started_at = datetime.now(UTC)
        self.uses = 0
        """How many connections hold it now, or wait for it to be made."""
        self.idle_since = time.monotonic()
        self.activity = Activity()
        self.definition = definition
        """The code that is in use."""
        self._surroundings = surroundings
        self._generation: Generation | None = None
        self._front: ServerFront | None = None
        self._running: RunningServer | None = None
        self._switching = asyncio.Lock()
        self._replacing: asyncio.Task[Generation] | None = None
        self._is_let_go = False

    @property
    def is_lost(self) -> bool:
        """Whether its lifespan has ended by itself. The next request, of whoever holds it, has it made anew."""
        return self._generation is not None and self._generation.is_lost

    @property
    def running(self) -> RunningServer:
        """The server, ready to be driven. Only a started instance has it."""
        assert self._running is not None
        return self._running

    async def start(self) -> None:
        """Make the `Server` object and enter its lifespan. Runs in the lane.

        Raises:
            InstanceUnavailable: the factory, its options or the lifespan failed. The reason is in the log.
        """
        generation = await self._make(self.definition)
        self._generation = generation
        generation.replacement = self._replace_lost
        self._front = ServerFront(generation, self.identity.user_id, self._surroundings)
        self._running = RunningServer(
            cast("Server[Any]", self._front),
            generation.options,
            generation.lifespan_state,
            generation.schemas,
            self.lane,
            _caller_context(self.server_name, self.identity),
        )
        # Looked at after `_generation` is set, where `stop` does it the other way round: one of the two sees the other.
        if self._is_let_go:
            generation.stop()

    async def switch(self, definition: ServerDefinition) -> None:
        """Go over to newer code; what is being handled finishes on the old. Runs in the lane.

        Raises:
            InstanceUnavailable: the new code gave no server. The old one stays in use.
        """
        async with self._switching:
            await self._switch(definition)

    async def _switch(self, definition: ServerDefinition) -> None:
        generation = await self._make(definition)
        assert self._front is not None
        assert self._generation is not None
        previous, self._generation = self._generation, generation
        generation.replacement = self._replace_lost
        self.definition = definition
        self._front.switch(generation)
        running = self.running
        running.initialization_options = generation.options
        running.lifespan_state = generation.lifespan_state
        running.schemas = generation.schemas
        previous.retire()

    async def _replace_lost(self) -> Generation:
        """The generation that is in use, made anew if it is lost. Runs in the lane.

        Raises:
            MCPError: it could not be made; the next request tries again.
        """
        if self._replacing is None or self._replacing.done():
            context = _caller_context(self.server_name, self.identity)
            self._replacing = asyncio.create_task(self._ensure_generation(), context=context)
            # Its failure is each waiter's to handle; with none left, nobody's.
            self._replacing.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.shield(self._replacing)
        except InstanceUnavailable as error:
            raise MCPError(code=INTERNAL_ERROR, message=str(error)) from None

    async def _ensure_generation(self) -> Generation:
        seconds = conf.factory_timeout_seconds
        try:
            async with asyncio.timeout(seconds), self._switching:
                if self.is_lost:
                    await self._switch(self.definition)
        except TimeoutError:
            logger.error("Server %s gave no instance within %s seconds", self.server_name, seconds)
            raise InstanceUnavailable(_TOO_SLOW) from None
        assert self._generation is not None
        if self._is_let_go:
            self._generation.stop()
        return self._generation

    async def _make(self, definition: ServerDefinition) -> Generation:
        # A reload comes from nobody, or in the name of somebody else. What the code logs is not to say this one's key.
        current_identity.set(self.identity)
        try:
            with self._surroundings.calls.noting("the factory"):
                return await Generation.start(definition, self.identity)
        except asyncio.CancelledError:
            raise
        # Foreign code may raise anything; here it costs this caller and nobody else.
        except BaseException as error:
            text = traceback_text(error, self.identity.api_key)
            logger.error("Server %s gave no instance: %s", self.server_name, text)
            raise InstanceUnavailable(_UNAVAILABLE) from None

    def stop(self) -> None:
        """Leave the lifespan. What still uses the instance is not waited for."""
        self._is_let_go = True
        if self._generation is not None:
            self.lane.post(self._generation.stop)

    def retire(self) -> None:
        """Leave the lifespan as soon as nothing is being handled: what a client that left has begun may clean up."""
        self._is_let_go = True
        if self._generation is not None:
            self.lane.post(self._generation.retire)

    async def wait_stopped(self, timeout_seconds: float) -> None:
        """Wait until the lifespan has ended, for so long at most: a blocked lane never tells."""
        if self._generation is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(self._generation.ended), timeout_seconds)


class Instances:
    """The instances of this process."""

    def __init__(self, lanes: Lanes, offers: Offers, policies: Policies) -> None:
        self._lanes = lanes
        self._offers = offers
        self._policies = policies
        self._request_state = RequestStateSecurity(keys=_request_state_keys())
        self._surroundings: dict[str, Surroundings] = {}
        self._ready: dict[_Key, Instance] = {}
        self._idle: OrderedDict[Instance, None] = OrderedDict()
        """Those of the ready ones that nobody holds, the longest idle first."""
        self._building: dict[_Key, tuple[Instance, asyncio.Task[None]]] = {}
        self._newest: dict[str, ServerDefinition] = {}
        """The code that all instances of a server are to run."""
        self._drops: Counter[str] = Counter()
        """How often a server's instances were dropped."""
        self._switches: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def use(self, definition: ServerDefinition, identity: Identity) -> AsyncIterator[Instance]:
        """The instance of `identity`, made on first use and held against expiry inside the block.

        Raises:
            InstanceUnavailable: it could not be made; it will be tried again next time.
            InstanceLimitReached: the host keeps as many as it may, and all of them are in use.
        """
        instance = await self.acquire(definition, identity)
        try:
            yield instance
        finally:
            self.release(instance)

    async def acquire(self, definition: ServerDefinition, identity: Identity) -> Instance:
        """Hold an instance until `release`, for users that are no block. Raises what `use` raises."""
        key = (definition.name, identity)
        instance = self._ready.get(key)
        # One that open sessions hold stays theirs: the next request replaces what is lost of it.
        if instance is not None and instance.is_lost and not instance.uses:
            self._let_go(instance)
            instance = None
        if instance is not None:
            self._idle.pop(instance, None)
            instance.uses += 1
            return instance
        instance, building = self._building.get(key) or self._start_building(key, definition)
        instance.uses += 1
        try:
            # Shielded: others may be waiting for the same instance when this caller leaves.
            await asyncio.shield(building)
        except BaseException:
            self.release(instance)
            raise
        return instance

    def release(self, instance: Instance) -> None:
        """Let go of an acquired instance."""
        instance.uses -= 1
        if not instance.uses:
            self._note_idle(instance)

    def _note_idle(self, instance: Instance) -> None:
        # Not one that was dropped meanwhile, or could not be made.
        if self._ready.get(_key(instance)) is instance:
            instance.idle_since = time.monotonic()
            self._idle[instance] = None

    def _make_room(self) -> None:
        """Let go of who has been idle for longest, where the host is full.

        Raises:
            InstanceLimitReached: nobody is idle.
        """
        while len(self) >= conf.max_instances:
            if not self._idle:
                raise InstanceLimitReached("The host is full. Try again later.")
            instance, _ = self._idle.popitem(last=False)
            del self._ready[_key(instance)]
            instance.retire()

    def _start_building(self, key: _Key, definition: ServerDefinition) -> tuple[Instance, "asyncio.Task[None]"]:
        self._make_room()
        name, identity = key
        instance = Instance(definition, identity, self._lanes.get(name), self.surroundings(name))
        task = asyncio.create_task(self._build(instance))
        # Its failure is each waiter's to handle; with none left, nobody's.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._building[key] = (instance, task)
        return instance, task

    async def _build(self, instance: Instance) -> None:
        key = name, _ = _key(instance)
        drops = self._drops[name]
        try:
            await self._start(instance)
            # Meanwhile the server may have been given newer code.
            while (newest := self._newest.get(name, instance.definition)) is not instance.definition:
                try:
                    await self._switch_one(instance, newest)
                except (TimeoutError, InstanceUnavailable):
                    break
            if self._drops[name] != drops:
                instance.stop()
                raise InstanceUnavailable("The server was taken away meanwhile. Try again later.")
        finally:
            del self._building[key]
        self._ready[key] = instance
        if not instance.uses:  # all who waited for it have left
            self._note_idle(instance)
        if self._offers.get(name) is None:
            self._start_learning(instance)

    async def _start(self, instance: Instance) -> None:
        try:
            async with asyncio.timeout(conf.factory_timeout_seconds):
                await instance.lane.run(instance.start())
        except TimeoutError:
            name, seconds = instance.server_name, conf.factory_timeout_seconds
            logger.error("Server %s gave no instance within %s seconds", name, seconds)
            # It may have started all the same, in the moment in which its start was cancelled.
            instance.stop()
            raise InstanceUnavailable(_TOO_SLOW) from None

    def _start_learning(self, instance: Instance) -> None:
        """Have an instance's server asked what it offers: all of it, whatever its caller's key is for."""
        # An identity all the same: what the server logs and raises meanwhile is not to say the key.
        context = _caller_context(instance.server_name, replace(instance.identity, grant=None))
        lane = instance.lane
        lane.post(lambda: lane.loop.create_task(self._learn_offer(instance), context=context))

    async def _learn_offer(self, instance: Instance) -> None:
        """Runs in the lane."""
        name = instance.server_name
        try:
            offer = await ask_offer(instance.running.server, instance.running.lifespan_state)
        except Exception as error:  # a list handler's own failure
            text = traceback_text(error, instance.identity.api_key)
            logger.warning("Server %s could not be asked what it offers: %s", name, text)
            return
        self._offers.learn(name, offer)
        signals.offer_learned.send_robust(Instances, server_name=name, offer=offer)

    def surroundings(self, server_name: str) -> Surroundings:
        """What the host gives to the instances of one server."""
        found = self._surroundings.get(server_name)
        if found is None:
            calls = ServerCalls(server_name, self._offers, self._policies)
            found = self._surroundings[server_name] = Surroundings(calls, self._request_state)
        return found

    @property
    def calls(self) -> list[ServerCalls]:
        """The calls of every server that has had an instance."""
        return [surroundings.calls for surroundings in list(self._surroundings.values())]

    def expect(self, definition: ServerDefinition) -> None:
        """From now on all new instances of a server run this code, also those that are just being made."""
        self._newest[definition.name] = definition
        self.surroundings(definition.name).calls.renew_threads()

    async def switch(self, definition: ServerDefinition) -> int:
        """Move the instances of a server to the code that is expected; returns how many it failed.

        Changes nothing if newer code is expected by now.
        """
        name = definition.name
        failures = 0
        learner: Instance | None = None
        # One at a time: of two that overlap, the older code would win where it takes longer.
        async with self._switches.setdefault(name, asyncio.Lock()):
            for key in [key for key in self._ready if key[0] == name]:
                instance = self._ready.get(key)
                if instance is None or instance.definition is definition or self._newest.get(name) is not definition:
                    continue
                try:
                    await self._switch_one(instance, definition)
                except (TimeoutError, InstanceUnavailable):
                    failures += 1
                else:
                    learner = instance
                if self._ready.get(key) is not instance:
                    instance.stop()  # it was let go meanwhile
        if learner is not None:
            self._start_learning(learner)
        return failures

    async def _switch_one(self, instance: Instance, definition: ServerDefinition) -> None:
        async with asyncio.timeout(conf.factory_timeout_seconds):
            await instance.lane.run(instance.switch(definition))

    def drop(self, server_name: str) -> None:
        """Stop all instances of a server, also those that are being made."""
        self._drops[server_name] += 1
        for key in [key for key in self._ready if key[0] == server_name]:
            self._let_go(self._ready[key])

    def _let_go(self, instance: Instance) -> None:
        del self._ready[_key(instance)]
        self._idle.pop(instance, None)
        instance.stop()

    def expire(self) -> int:
        """Stop the instances that have been idle for too long, or whose key was revoked; returns how many."""
        oldest = time.monotonic() - conf.instance_idle_seconds
        over = [instance for instance in self._idle if instance.idle_since < oldest or instance.identity.is_revoked]
        for instance in over:
            self._let_go(instance)
        return len(over)

    def keep_up(self) -> None:
        """Do what is due now and then: expiry, and the servers' threads."""
        self.expire()
        for calls in self.calls:
            calls.keep_up()

    async def stop(self) -> None:
        """Stop all instances and wait a moment for their lifespans to end."""
        instances = list(self._ready.values())
        self._ready.clear()
        self._idle.clear()
        for instance in instances:
            instance.stop()
        await asyncio.gather(*(instance.wait_stopped(_STOP_TIMEOUT_SECONDS) for instance in instances))
        for calls in self.calls:
            calls.close()

    def count_by_server(self) -> Counter[str]:
        """How many instances each server has."""
        return Counter(server_name for server_name, _ in list(self._ready))

    def __iter__(self) -> Iterator[Instance]:
        return iter(list(self._ready.values()))

    def __len__(self) -> int:
        return len(self._ready) + len(self._building)


def _key(instance: Instance) -> _Key:
    return instance.server_name, instance.identity


def _request_state_keys() -> list[bytes]:
    """Keys that seal `requestState`: derived from Django's, so that a state outlives a restart and a rotated key."""
    secrets = dict.fromkeys([settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS])
    return [salted_hmac("gumcp.request-state", "v1", secret=secret, algorithm="sha256").digest() for secret in secrets]


def _caller_context(server_name: str, identity: Identity) -> contextvars.Context:
    """Context variables in which the SDK and the host find the caller; what the SDK keeps is bound to it.

    The principal is a digest: neither the user id nor the key is needed to tell callers apart.
    """
    principal = sha256(repr((server_name, identity.user_id, identity.api_key)).encode()).hexdigest()
    context = contextvars.Context()
    context.run(current_identity.set, identity)
    context.run(auth_context_var.set, AuthenticatedUser(AccessToken(token="", client_id=principal, scopes=[])))
    return context
