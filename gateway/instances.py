"""Instances: one `Server` object for each (server, identity), made by its factory, reused, expired.

Lives here: building one in its server's lane, keeping it alive, counting who uses it. Not here: what its sessions say
(`transports`).

Threads: every public method is called on the host's loop; what runs in the lane is marked.
"""

import asyncio
import contextlib
import contextvars
import logging
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from django.conf import settings
from django.utils.crypto import salted_hmac
from mcp.server import Server
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.models import InitializationOptions
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity

from gateway import signals
from gateway.calls import CallMiddleware
from gateway.conf import conf
from gateway.discovery import ServerDefinition
from gateway.exceptions import InstanceLimitReached, InstanceUnavailable
from gateway.identity import Identity
from gateway.lanes import Lane, Lanes
from gateway.offers import Offers, ask_offer
from gateway.redaction import redact
from gateway.tool_schemas import ToolSchemas, current_schemas, look_up_schema
from gateway.transports.running_server import RunningServer

logger = logging.getLogger(__name__)

_Key = tuple[str, Identity]

_STOP_TIMEOUT_SECONDS: Final = 5.0
"""How long an instance's lifespan may take to end."""

_UNAVAILABLE: Final = "The server could not be started for this user. Its operator finds the reason in the log."


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every instance of a process is given."""

    offers: Offers
    request_state: RequestStateSecurity


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
    """One `Server` object of one identity, alive in its server's lane."""

    def __init__(self, definition: ServerDefinition, identity: Identity, lane: Lane) -> None:
        self.definition = definition
        self.identity = identity
        self.lane = lane
        self.uses = 0
        """How many connections hold it now."""
        self.idle_since = time.monotonic()
        self.activity = Activity()
        self._running: RunningServer | None = None
        self._stopping = asyncio.Event()  # bound to the lane's loop on first wait there
        self._life: asyncio.Task[None] | None = None
        self._ended: Future[None] = Future()

    @property
    def running(self) -> RunningServer:
        """The server, ready to be driven. Only a started instance has it."""
        assert self._running is not None
        return self._running

    async def start(self, surroundings: "Surroundings") -> None:
        """Make the `Server` object and enter its lifespan. Runs in the lane.

        Raises:
            InstanceUnavailable: the factory, its options or the lifespan failed. The reason is in the log.
        """
        try:
            server, options = await self._make()
            # The SDK reports the Server object's own name and version on transports that know no options.
            server.name, server.version = options.server_name, options.server_version
            self._equip(server, surroundings)
            started: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._life = asyncio.create_task(self._live(server, started))
            lifespan_state = await started
        except asyncio.CancelledError:
            self._stopping.set()
            if self._life is not None:
                self._life.cancel()
            raise
        # Foreign code may raise anything; here it costs this caller and nobody else.
        except BaseException as error:
            text = "".join(traceback.format_exception(error))
            logger.error("Server %s gave no instance: %s", self.definition.name, redact(text, self.identity.api_key))
            raise InstanceUnavailable(_UNAVAILABLE) from None
        context = _instance_context(self, server, lifespan_state)
        self._running = RunningServer(server, options, lifespan_state, self.lane, context)

    def _equip(self, server: Server[Any], surroundings: "Surroundings") -> None:
        """Add what the host does around each request. Once: a factory may return the same object every time."""
        if not any(isinstance(middleware, CallMiddleware) for middleware in server.middleware):
            server.middleware.insert(0, CallMiddleware(self.definition.name, surroundings.offers))
        if server.get_tool_input_schema is None:
            server.get_tool_input_schema = look_up_schema
        if not any(isinstance(middleware, RequestStateBoundary) for middleware in server.middleware):
            # Outermost, so that the server's own middleware and handlers see what they minted. An author's own
            # boundary stands.
            boundary = RequestStateBoundary(surroundings.request_state, default_audience=self.definition.name)
            server.middleware.insert(0, boundary)

    async def _make(self) -> tuple[Server[Any], InitializationOptions]:
        server = self.definition.factory(self.identity.user_id, self.identity.api_key)
        # A factory that overran its time was cancelled meanwhile: the next line is where that takes effect.
        await asyncio.sleep(0)
        if not isinstance(server, Server):
            raise TypeError(f"The factory returned {type(server).__name__}, not an mcp.server.Server.")
        options = self.definition.get_initialization_options(server)
        if not isinstance(options, InitializationOptions):
            raise TypeError(
                f"get_initialization_options returned {type(options).__name__}, not an InitializationOptions."
            )
        return server, options

    async def _live(self, server: Server[Any], started: "asyncio.Future[Any]") -> None:
        """Hold the lifespan open until the instance is stopped: it is entered and left by the same task."""
        try:
            async with server.lifespan(server) as lifespan_state:
                if not started.done():
                    started.set_result(lifespan_state)
                await self._stopping.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not started.done():
                started.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
            else:
                logger.exception("The lifespan of an instance of %s failed as it ended", self.definition.name)
        finally:
            self._ended.set_result(None)

    def stop(self) -> None:
        """Leave the lifespan. What still uses the instance is not waited for."""
        self.lane.post(self._stopping.set)

    async def wait_stopped(self, timeout_seconds: float) -> None:
        """Wait until the lifespan has ended, for so long at most: a blocked lane never tells."""
        ended = self._ended
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(ended), timeout_seconds)


class Instances:
    """The instances of this process."""

    def __init__(self, lanes: Lanes, offers: Offers) -> None:
        self._lanes = lanes
        self._offers = offers
        self._surroundings = Surroundings(offers, RequestStateSecurity(keys=_request_state_keys()))
        self._ready: dict[_Key, Instance] = {}
        self._building: dict[_Key, asyncio.Task[Instance]] = {}

    @asynccontextmanager
    async def use(self, definition: ServerDefinition, identity: Identity) -> AsyncIterator[Instance]:
        """The instance of `identity`, made on first use and held against expiry inside the block.

        Raises:
            InstanceUnavailable: it could not be made; it will be tried again next time.
            InstanceLimitReached: the host keeps as many as it may.
        """
        instance = await self.acquire(definition, identity)
        try:
            yield instance
        finally:
            self.release(instance)

    async def acquire(self, definition: ServerDefinition, identity: Identity) -> Instance:
        """Hold an instance until `release`, for users that are no block. Raises what `use` raises."""
        instance = await self._get(definition, identity)
        instance.uses += 1
        return instance

    def release(self, instance: Instance) -> None:
        """Let go of an acquired instance."""
        instance.uses -= 1
        instance.idle_since = time.monotonic()

    async def _get(self, definition: ServerDefinition, identity: Identity) -> Instance:
        key = (definition.name, identity)
        if (instance := self._ready.get(key)) is not None:
            return instance
        building = self._building.get(key)
        if building is None:
            if len(self) >= conf.max_instances:
                raise InstanceLimitReached("The host is full. Try again later.")
            building = self._building[key] = asyncio.create_task(self._build(key, definition, identity))
        # Shielded: others may be waiting for the same instance when this caller leaves.
        return await asyncio.shield(building)

    async def _build(self, key: _Key, definition: ServerDefinition, identity: Identity) -> Instance:
        instance = Instance(definition, identity, self._lanes.get(definition.name))
        try:
            async with asyncio.timeout(conf.factory_timeout_seconds):
                await instance.lane.run(instance.start(self._surroundings))
        except TimeoutError:
            logger.error("Server %s gave no instance within %s seconds", definition.name, conf.factory_timeout_seconds)
            raise InstanceUnavailable("The server took too long to start for this user. Try again.") from None
        finally:
            del self._building[key]
        self._ready[key] = instance
        if self._offers.get(definition.name) is None:
            instance.lane.post(instance.lane.loop.create_task, self._learn_offer(instance))
        return instance

    async def _learn_offer(self, instance: Instance) -> None:
        """Runs in the lane."""
        name = instance.definition.name
        try:
            offer = await ask_offer(instance.running.server, instance.running.lifespan_state)
        except Exception:  # a list handler's own failure
            logger.warning("Server %s could not be asked what it offers", name, exc_info=True)
            return
        self._offers.learn(name, offer)
        signals.offer_learned.send_robust(Instances, server_name=name, offer=offer)

    def expire(self) -> int:
        """Stop the instances that have been idle for too long; returns how many."""
        oldest = time.monotonic() - conf.instance_idle_seconds
        idle = [key for key, instance in self._ready.items() if not instance.uses and instance.idle_since < oldest]
        for key in idle:
            self._ready.pop(key).stop()
        return len(idle)

    async def stop(self) -> None:
        """Stop all instances and wait a moment for their lifespans to end."""
        instances = list(self._ready.values())
        self._ready.clear()
        for instance in instances:
            instance.stop()
        await asyncio.gather(*(instance.wait_stopped(_STOP_TIMEOUT_SECONDS) for instance in instances))

    def count_by_server(self) -> Counter[str]:
        """How many instances each server has."""
        return Counter(server_name for server_name, _ in list(self._ready))

    def __len__(self) -> int:
        return len(self._ready) + len(self._building)


def _request_state_keys() -> list[bytes]:
    """Keys that seal `requestState`: derived from Django's, so that a state outlives a restart and a rotated key."""
    secrets = dict.fromkeys([settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS])
    return [salted_hmac("gumcp.request-state", "v1", secret=secret, algorithm="sha256").digest() for secret in secrets]


def _instance_context(instance: Instance, server: Server[Any], lifespan_state: Any) -> contextvars.Context:
    """Context variables of this instance's message loops.

    The SDK finds the caller in its own, and binds what it keeps to that principal: a digest, since neither the user id
    nor the key is needed to tell callers apart.
    """
    identity = instance.identity
    principal = sha256(repr((instance.definition.name, identity.user_id, identity.api_key)).encode()).hexdigest()
    context = contextvars.Context()
    context.run(auth_context_var.set, AuthenticatedUser(AccessToken(token="", client_id=principal, scopes=[])))
    context.run(current_schemas.set, ToolSchemas(server, lifespan_state))
    return context
