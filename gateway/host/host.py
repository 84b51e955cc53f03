"""The running host: everything that lives as long as the ASGI application does, made in one place and passed on.

Lives here: what exists, in which order it starts and stops, and the clock that drives upkeep. Not here: any of the
work itself.
"""

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVarTuple
from uuid import UUID
from wsgiref.simple_server import WSGIServer

from django.conf import settings
from prometheus_client import start_http_server

from gateway import metrics
from gateway.access.doorkeeper import Doorkeeper
from gateway.access.redaction import PathRedactor, install_record_redaction
from gateway.catalog.discovery import ServerDefinition
from gateway.catalog.registry import NOT_SERVED, Registry
from gateway.conf import conf
from gateway.exceptions import GatewayError, ServerDisabled, UnknownServer
from gateway.host.control import ControlListener
from gateway.host.reloading import Reloader
from gateway.http.origins import OriginPolicy
from gateway.instances.instances import Instances
from gateway.instances.lanes import STOP_TIMEOUT_SECONDS, Lanes
from gateway.instances.offers import Offers
from gateway.instances.policies import Policies
from gateway.records.recorder import Recorder
from gateway.serving import ServingHooks, ServingLimits
from gateway.transports.sessions import Sessions
from gateway.transports.stateless_calls import StatelessCalls
from gateway.transports.streams import Streams

logger = logging.getLogger(__name__)

_Ts = TypeVarTuple("_Ts")

STOPPED: Final = "the host stopped"
"""Why sessions ended that were open when the process was told to stop."""

REMOVED: Final = "the server was removed"
"""Why sessions ended whose server's folder is gone."""

DISABLED: Final = "the server was switched off"
"""Why sessions ended whose server an operator disabled."""

SWITCHED_OFF: Final = "An operator has switched this server off. Try again later."
"""What its clients are told."""

BLOCKED_SECONDS: Final = 1.0
"""How long a lane may not answer before its server counts as blocked."""

CLOSING_SECONDS: Final = 0.5
"""What is left of the grace time when sessions end whose calls are not answered yet."""

DRAIN_LOOK_SECONDS: Final = 0.05
"""How often a drain looks for sessions that have been answered."""

STOP_SECONDS: Final = 10.0
"""How long servers' lifespans may take to end, if the grace time allows."""

MARGIN_SECONDS: Final = 0.25
"""How long they have when the grace time is over."""

FIRST_LOOK_SECONDS: Final = 1.0
"""How long the start waits to learn from the database how servers are to be run."""

UPKEEP_SECONDS: Final = 1.0
"""How often silent streams, idle instances and lane lag are looked at."""


class Host:
    """One process's gateway.

    Threads: it is made in the main thread; `start` and `stop` run on the loop that serves requests. The recorder and
    the metrics endpoint have threads of their own.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.redactor = PathRedactor(registry.names)
        self.origin_policy = OriginPolicy(settings.ALLOWED_HOSTS, conf.allowed_origins)
        self.lanes = Lanes()
        self.offers = Offers()
        self.policies = Policies()
        self.instances = Instances(self.lanes, self.offers, self.policies)
        self.sessions = Sessions()
        self.streams = Streams()
        self.doorkeeper = Doorkeeper(self.sessions, self.call_soon)
        self.recorder = Recorder(registry, self.sessions, self.instances, self.offers)
        self.reloader = Reloader(
            registry, self.instances, on_switched=self._tell_of_new_code, on_removed=self._end_removed
        )
        self.stateless_calls = StatelessCalls()
        self._blocked: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._control = ControlListener(self.sessions, on_keys_changed=self.doorkeeper.wake)
        self._collector = metrics.HostCollector(self)
        self._metrics_server: WSGIServer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._upkeep: asyncio.Task[None] | None = None
        self._is_prepared = False
        self.watches_files = False
        """Whether servers are reloaded as their files change. Set before the start."""
        self.is_draining = False
        """Whether the process has been told to stop."""
        self.drain_ends_at = float("inf")
        """When calls in flight have had their time (monotonic seconds)."""
        self._answered: set[UUID] = set()

    def prepare(self) -> None:
        """Do what needs no event loop: log redaction, metrics and their port, the recorder's thread."""
        if self._is_prepared:
            return
        self._is_prepared = True
        install_record_redaction(self.redactor)
        metrics.connect()
        metrics.load_failures.set(len(self.registry.failures))
        for definition in self.registry:
            # So that Prometheus sees every server from the start, at 0.
            metrics.active_connections.labels(definition.name)
            metrics.connections.labels(definition.name)
        self._collector.register()
        if conf.metrics_port:
            try:
                server, _thread = start_http_server(conf.metrics_port, conf.metrics_host)
            except OSError as error:
                # Serving matters more: several processes of one machine share this default.
                logger.error(
                    "No metrics: cannot listen on %s:%s (%s). Set GUMCP_METRICS_PORT to a free port, or to 0.",
                    conf.metrics_host,
                    conf.metrics_port,
                    error.strerror,
                )
            else:
                self._metrics_server = server
        self.recorder.start()
        self.doorkeeper.start()
        # What is there now stays until the end: the collector need not look at it again. It saves pauses of 100 ms
        # under load (p99 of calls on Daphne from 108 to 28 ms).
        gc.collect()
        gc.freeze()
        # A server that was switched off is not to be served until somebody has looked.
        self.recorder.has_tried.wait(FIRST_LOOK_SECONDS)
        self.policies.replace(self.recorder.take_policies() or {})

    def ensure_started(self) -> None:
        """Start what needs the serving loop. Called on that loop; calling it again changes nothing.

        ASGI has no start that every server tells of (Daphne sends no lifespan events), so the first request does it.
        """
        if self._upkeep is None:
            self.prepare()
            self._loop = asyncio.get_running_loop()
            self._upkeep = asyncio.create_task(self._keep_up())
            self._control.start()
            if self.watches_files:
                self._start_task(self.reloader.watch())

    def find_server(self, name: str) -> ServerDefinition:
        """The server called `name`, if clients may use it now.

        Raises:
            UnknownServer, ServerDisabled
        """
        definition = self.registry.get(name)
        if not self.policies.get(name).is_enabled:
            raise ServerDisabled(SWITCHED_OFF)
        return definition

    def require_room(self) -> None:
        """Check that one more session, or listener, may be opened. Raises `SessionLimitReached`."""
        self.sessions.require_room(conf.max_sessions - self.doorkeeper.authenticator.listeners)

    def _tell_of_new_code(self, server_name: str) -> None:
        """Tell the clients of a server that its lists may have changed."""
        self.redactor.learn(self.registry.names)
        for session in self.sessions:
            if session.server_name == server_name:
                session.announce()
        self.stateless_calls.announce(server_name)

    def _end_removed(self, server_name: str) -> None:
        self._end_use(server_name, REMOVED, UnknownServer(NOT_SERVED))

    def _end_use(self, server_name: str, reason: str, error: GatewayError) -> None:
        """End what clients have open with a server and let its instances go; `error` answers stateless requests."""
        for session in self.sessions:
            if session.server_name == server_name:
                session.end(reason)
        self.stateless_calls.end(server_name, error)
        self.instances.drop(server_name)

    def _start_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("A background task failed", exc_info=error)

    def call_soon(self, callback: Callable[[*_Ts], object], *args: *_Ts) -> None:
        """Call `callback(*args)` on the serving loop. For lanes; after the host's end nothing happens."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(callback, *args)

    def drain(self) -> None:
        """Begin to end: health says so from now on, and open streams end. Calls in flight go on."""
        if not self.is_draining:
            self.is_draining = True
            self.drain_ends_at = time.monotonic() + conf.shutdown_grace_seconds
            logger.info("Draining: %d sessions, %d streams", len(self.sessions), len(self.streams))
            self.stateless_calls.stop_listening()
            self._start_task(self._follow_drain())

    async def _follow_drain(self) -> None:
        # Those that take too long end a moment before the ASGI server cancels them, so that their streams end cleanly.
        closes_at = self.drain_ends_at - min(CLOSING_SECONDS, conf.shutdown_grace_seconds / 10)
        while True:
            self._end_answered(is_late=time.monotonic() >= closes_at)
            await asyncio.sleep(DRAIN_LOOK_SECONDS)

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            try:
                self.streams.keep_up(conf.ping_seconds)
                self.sessions.expire(conf.session_idle_seconds)
                self.instances.keep_up()
                self._follow_operators()
                self._watch_lanes()
            except Exception:  # upkeep must go on, whatever one round ran into
                logger.exception("Upkeep failed")

    def _follow_operators(self) -> None:
        """Put in force what operators want, as the recorder has read it."""
        self._control.apply_wanted(self.recorder.take_wanted_ends())
        policies = self.recorder.take_policies()
        if policies is not None:
            for server_name in self.policies.replace(policies):
                logger.info("Server %s was switched off", server_name)
                self._end_use(server_name, DISABLED, ServerDisabled(SWITCHED_OFF))
        served = set(self.registry.names)
        for session in self.sessions:
            # Opened by requests that were let in just before.
            if not self.policies.get(session.server_name).is_enabled:
                session.end(DISABLED)
            elif session.server_name not in served:
                session.end(REMOVED)
        wanted = self.recorder.take_wanted_reloads()
        if wanted:
            self._start_task(self.reloader.update(names=wanted))

    def _watch_lanes(self) -> None:
        """Notice lanes that do not answer, while they do not, and say which call it is."""
        conditions: dict[str, str] = {}
        calls_by_server = {calls.server_name: calls for calls in self.instances.calls}
        for lane in self.lanes:
            lane.probe()
            calls = calls_by_server.get(lane.name)
            seconds = lane.blocked_seconds
            if seconds < BLOCKED_SECONDS:
                self._blocked.discard(lane.name)
            elif calls is not None:
                call = calls.blocking(lane.loop)
                what, label = (call.name, call.label) if call is not None else ("its code", "its code")
                conditions[lane.name] = f"Blocked for {seconds:.0f} s by {what}"
                if lane.name not in self._blocked:
                    self._blocked.add(lane.name)
                    metrics.lane_blocks.labels(lane.name, label).inc()
                    logger.warning(
                        "Server %s: %s blocks its event loop (for %.1f s so far); all of its users wait",
                        lane.name,
                        what,
                        seconds,
                    )
            if calls is not None and calls.stuck:
                stuck = f"{calls.stuck} calls are stuck: they were given up and have not returned"
                conditions[lane.name] = "; ".join(filter(None, [conditions.get(lane.name), stuck]))
        self.recorder.note_conditions(conditions)

    @property
    def blocked_servers(self) -> list[str]:
        """Servers whose lane does not answer, by name."""
        return sorted(lane.name for lane in self.lanes if lane.blocked_seconds >= BLOCKED_SECONDS)

    def _end_answered(self, *, is_late: bool) -> None:
        """End the sessions that are settled; all of them when it is late.

        Only those that were so the last time too: a lane takes a call off the list just before it writes the
        answer, and what is written to a closed stream is lost.
        """
        answered = {session.row_id for session in self.sessions if session.is_settled}
        for session in self.sessions:
            if is_late or session.row_id in answered & self._answered:
                session.end(STOPPED)
        self._answered = answered

    async def stop(self) -> None:
        """End sessions, instances and lanes, and write the last rows. Called on the serving loop.

        What may take long comes last: the process may be ended at any time from now on.
        """
        started = time.monotonic()
        for session in self.sessions:
            session.end(STOPPED)
        self.streams.cut_all()
        if self._upkeep is not None:
            self._upkeep.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._upkeep
            self._upkeep = None
        for task in list(self._tasks):
            task.cancel()
        await self._control.stop()
        seconds = max(MARGIN_SECONDS, min(STOP_SECONDS, self.drain_ends_at - started))
        await asyncio.gather(asyncio.to_thread(self.recorder.stop), self._stop_instances(seconds))
        # What is blocked takes all the time that it is given.
        seconds = max(MARGIN_SECONDS, min(STOP_TIMEOUT_SECONDS, self.drain_ends_at - time.monotonic()))
        await asyncio.to_thread(self.close, seconds)
        logger.info("Stopped in %.1f s", time.monotonic() - started)

    async def _stop_instances(self, seconds: float) -> None:
        # Lanes come after: what is left in them is cancelled even if a lifespan does not end.
        try:
            await asyncio.wait_for(self.instances.stop(), seconds)
        except TimeoutError:
            logger.warning("Some servers' lifespans did not end in time")

    def close(self, seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """Do the part of `stop` that needs no event loop, in about so many seconds."""
        self.lanes.stop(seconds)
        self.recorder.stop()
        self.doorkeeper.stop()
        self._stop_metrics()

    def _stop_metrics(self) -> None:
        if self._is_prepared:
            self._is_prepared = False
            self._collector.unregister()
            if self._metrics_server is not None:
                self._metrics_server.shutdown()
                self._metrics_server.server_close()
                self._metrics_server = None


def serving_limits() -> ServingLimits:
    """The limits of our Daphne, from settings."""
    return ServingLimits(
        body_bytes=conf.max_body_bytes,
        unfinished_bodies_bytes=conf.max_unfinished_bodies_bytes,
        buffered_bytes=conf.stream_buffer_bytes,
        # A little later than streams, whose own limit knows which server they belong to.
        slow_reader_seconds=conf.slow_reader_seconds + 2 * UPKEEP_SECONDS,
        connections=conf.max_connections,
        connections_per_address=conf.max_connections_per_address,
        shutdown_grace_seconds=conf.shutdown_grace_seconds,
    )


def serving_hooks(host: Host) -> ServingHooks:
    """What our Daphne tells `host`."""

    def count(event: str) -> None:
        metrics.connection_faults.labels(event).inc()
        if event == "body_too_large":
            # The only one that the doors would have refused as well, had it reached them.
            metrics.refused_requests.labels(event).inc()

    return ServingHooks(
        redact=host.redactor.path,
        on_event=count,
        on_start=host.ensure_started,
        on_drain=host.drain,
        on_stop=host.stop,
    )
