"""The running host: everything that lives as long as the ASGI application, made in one place and passed on.

Lives here: what exists, in which order it starts and stops, and the clock that drives upkeep. The work itself is done
by what is made here.
"""

import asyncio
import contextlib
import gc
import logging
import sys
import time
from typing import TYPE_CHECKING, Final

from django.conf import settings

from gateway import metrics
from gateway.access.doorkeeper import Doorkeeper
from gateway.access.log_redaction import install_record_redaction
from gateway.access.redaction import PathRedactor
from gateway.alerts.watch import AlertWatch
from gateway.catalog.registry import Registry
from gateway.collector import look_seldom_for_garbage
from gateway.conf import conf
from gateway.host.availability import Availability
from gateway.host.build import note_build
from gateway.host.control import ControlListener
from gateway.host.drain import Drain
from gateway.host.freed_memory import FreedMemory
from gateway.host.lane_watch import LaneWatch
from gateway.host.metrics_port import MetricsPort
from gateway.host.reloading import Reloader
from gateway.host.server_log import ServerLog
from gateway.host.serving_loop import ServingLoop
from gateway.host.steering import Steering
from gateway.host.troubles import TroubleWatch
from gateway.http.origins import OriginPolicy
from gateway.instances import instances, lanes
from gateway.instances.call_log import CallLog
from gateway.instances.instances import Instances
from gateway.instances.lanes import Lanes
from gateway.instances.listings import Listings
from gateway.instances.policies import Policies
from gateway.records.processes import Place
from gateway.records.recorder import Recorder
from gateway.records.restorable_sessions import RestorableSessions
from gateway.transports.message_budget import MessageBudget
from gateway.transports.message_reader import MessageReader
from gateway.transports.sessions import STOPPED, Sessions
from gateway.transports.shared_events import SharedEvents
from gateway.transports.stateless_calls import StatelessCalls
from gateway.transports.streams import Streams

if TYPE_CHECKING:
    from gateway.tracing.tracing import Tracing

logger = logging.getLogger(__name__)

TRACES_SECONDS: Final = 1.0
"""How long the stop may take to export the last traces."""

MARGIN_SECONDS: Final = 0.25
"""How long each step of the stop may take when the grace time is over."""

FIRST_LOOK_SECONDS: Final = 1.0
"""How long the start waits for the database to say which servers are switched off."""

SWITCH_SECONDS: Final = 0.001
"""How long a thread that computes keeps Python's lock (GIL) while others want it.

A request passes from thread to thread several times and may have to wait that long each time, so Python's own 5 ms are
felt: with two threads that compute, p99 of calls to another server was 346 ms with it, and 69 ms with this. Throughput
without such threads is the same.
"""

UPKEEP_SECONDS: Final = 1.0
"""How often the host looks at silent streams, idle instances and lanes."""


class Host:
    """One process's gateway.

    Threads: it is made, and `prepare` is called, in the main thread. `ensure_started` and `stop` are called on the loop
    that serves requests. The recorder, the alerts, the key watch and the metrics port have threads of their own.
    """

    def __init__(self, registry: Registry, place: Place | None = None, tracing: "Tracing | None" = None) -> None:
        """`place`: where this process is in a fleet; None if it is alone. `tracing`: None for no tracing."""
        self.registry = registry
        self.tracing = tracing
        self.redactor = PathRedactor(registry.names)
        self.origin_policy = OriginPolicy(settings.ALLOWED_HOSTS, conf.allowed_origins, conf.allowed_headers)
        self.loop = ServingLoop()
        self.lanes = Lanes()
        self.policies = Policies(registry.own_call_timeout)
        listings = Listings()
        self.call_log = CallLog(keeps_calls=conf.records_calls, is_server=registry.serves)
        self.instances = Instances(self.lanes, listings, self.policies, self.call_log, tracing)
        self.sessions = Sessions()
        self.streams = Streams()
        self.stateless_calls = StatelessCalls()
        self.message_budget = MessageBudget(
            host_bytes=conf.max_unanswered_bytes,
            address_bytes=conf.max_unanswered_bytes_per_address,
            key_bytes=conf.max_unanswered_bytes_per_key,
        )
        self.message_reader = MessageReader(self.message_budget, None if tracing is None else tracing.note_message)
        self.doorkeeper = Doorkeeper(self.sessions, self.loop.call_soon)
        self.recorder = Recorder(registry, self.sessions, self.instances, listings, self.call_log, place)
        self.restorable = RestorableSessions(self.sessions, self.recorder.process_id, self.loop.call_soon)
        self.shared_events = (
            SharedEvents(
                conf.redis_url,
                settings.SECRET_KEY,
                self.recorder.process_id,
                max_events=conf.max_kept_events,
                max_bytes=conf.max_kept_event_bytes,
            )
            if conf.redis_url
            else None
        )
        self.availability = Availability(
            registry, self.policies, self.instances, self.sessions, self.stateless_calls, self.redactor
        )
        self.reloader = Reloader(
            registry,
            self.instances,
            on_switched=self.availability.announce_new_code,
            on_removed=self.availability.end_removed,
        )
        self.lane_watch = LaneWatch(self.lanes, self.instances)
        troubles = TroubleWatch(registry, self.lane_watch, self.recorder)
        self._alerts = AlertWatch(self.recorder.process_id, troubles.look, lambda: self.recorder.processes)
        self.server_log = ServerLog(registry)
        self.drain = Drain(
            self.loop, self.sessions, self.streams, self.stateless_calls, on_begin=self.restorable.keep_superseded
        )
        self._control = ControlListener(self.sessions, on_keys_changed=self.doorkeeper.wake)
        self._steering = Steering(
            self.recorder, self.policies, self.availability, self._control, self.reloader, self.loop
        )
        self._collector = metrics.HostCollector(self.lanes, self.instances, self.sessions)
        self._metrics_port = MetricsPort()
        self._upkeep: asyncio.Task[None] | None = None
        self._freed_memory = FreedMemory()
        self._usual_switch_seconds = SWITCH_SECONDS
        self._is_prepared = False
        self.watches_files = False
        """Whether servers are reloaded when their files change. Set before the start."""

    def prepare(self) -> None:
        """Start what needs no event loop: log redaction, metrics and their port, the threads that use the database."""
        if self._is_prepared:
            return
        self._is_prepared = True
        install_record_redaction(self.redactor)
        self.server_log.install()
        metrics.connect()
        note_build()
        metrics.load_failures.set(len(self.registry.failures))
        for definition in self.registry:
            # So that Prometheus sees every server from the start, at 0.
            metrics.active_connections.labels(definition.name)
            metrics.connections.labels(definition.name)
        self._collector.register()
        self._metrics_port.start()
        self.recorder.start()
        self._alerts.start()
        self.restorable.start()
        if self.shared_events is not None:
            self.shared_events.start()
        self.doorkeeper.start()
        gc.collect()
        look_seldom_for_garbage()
        self._freed_memory.start()
        self._usual_switch_seconds = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        # A server that is switched off must not be served in the meantime.
        self._steering.wait_for_policies(FIRST_LOOK_SECONDS)

    def ensure_started(self) -> None:
        """Start what needs the serving loop. Call it on that loop; a second call changes nothing.

        Not every ASGI server announces its start (Daphne sends no lifespan events), so the first request does it.
        """
        if self._upkeep is None:
            self.prepare()
            self.loop.bind()
            self._upkeep = asyncio.create_task(self._keep_up())
            self._control.start()
            if self.watches_files:
                self.loop.start_task(self.reloader.watch())

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            try:
                self.recorder.history.keep_up()
                self.streams.keep_up(conf.ping_seconds)
                self.sessions.expire(conf.session_idle_seconds)
                self.instances.keep_up()
                self._steering.carry_out()
                if changed := self.reloader.look_at_manifests():
                    self.loop.start_task(self.reloader.update(changed_paths=changed))
                self.recorder.note_conditions({**self.registry.warnings(), **self.lane_watch.look()})
                self._alerts.keep_up()
                self._freed_memory.keep_up()
            except Exception:  # upkeep must go on, whatever happened in one round
                logger.exception("Upkeep failed")

    async def stop(self) -> None:
        """End sessions, instances and lanes, and write the last rows. Call it on the serving loop.

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
        self.loop.cancel_tasks()
        await self._control.stop()
        await asyncio.gather(
            asyncio.to_thread(self.recorder.stop),
            asyncio.to_thread(self._alerts.stop),
            asyncio.to_thread(self.restorable.stop),
            self.instances.stop(self._seconds_for(instances.STOP_TIMEOUT_SECONDS)),
        )
        # Lanes cancel what is left in them, so they stop after the instances. A lane that is blocked takes all the time
        # that it is given.
        await asyncio.to_thread(self.close, self._seconds_for(lanes.STOP_TIMEOUT_SECONDS))
        logger.info("Stopped in %.1f s", time.monotonic() - started)

    def _seconds_for(self, seconds: float) -> float:
        """How long a step of the stop may take that is to take `seconds`: less if the grace time ends before."""
        return max(MARGIN_SECONDS, min(seconds, self.drain.seconds_left))

    def close(self, seconds: float = lanes.STOP_TIMEOUT_SECONDS) -> None:
        """Do the part of `stop` that needs no event loop, in about `seconds`."""
        self.message_reader.close()
        if self.tracing is not None:
            self.tracing.stop(min(seconds, TRACES_SECONDS))
        self.lanes.stop(seconds)
        self.server_log.uninstall()
        self.recorder.stop()
        self._alerts.stop()
        self.restorable.stop()
        if self.shared_events is not None:
            self.shared_events.stop()
        self.doorkeeper.stop()
        if self._is_prepared:
            self._is_prepared = False
            sys.setswitchinterval(self._usual_switch_seconds)
            self._collector.unregister()
            self._metrics_port.stop()
