"""Daphne's server, with the differences that long-lived streams and strangers on the network force.

Importing this module imports `daphne.server`, which installs Twisted's asyncio reactor: only a process that is going to
run Daphne does it (see `gateway.serving.install_if_daphne`).

Daphne's command line, endpoints, proxy headers, access log and ASGI messages stay. These differ, each for its reason
(measured with Daphne 4.2.3 and Twisted 26.10):

1.  The periodic checks survive an exception, and an application's end is seen when it happens. Daphne's
    `application_checker` stops for good at the first exception after `http.response.start`: later errors get no 500.
2.  `send` waits while the socket is full. Daphne's never does: 64 MB for a client that does not read cost 63 MB.
3.  A client that does not take `buffered_bytes` (or all there is) in `slow_reader_seconds` is cut. Daphne cuts none.
4.  Headers and body have deadlines, the body a lowest rate. Daphne never cuts a client that sends byte by byte.
    (Daphne's own `--http-timeout` ends every stream and is not obeyed.)
5.  A body that is too large is refused from its header, or as soon as it has grown too large, and bodies are held in
    memory, with a limit for all that are being read. Twisted writes one of more than 100 kB to a temporary file, whole
    and unlimited, before the application starts.
6.  TCP keepalive and TCP_USER_TIMEOUT: a peer that went without a FIN is noticed within a minute, not never.
7.  The listen backlog is 2048 instead of 50, so that a busy loop does not turn clients away.
8.  Keep-alive is 75 s. Twisted's 60 s are those of common load balancers: both sides close at once.
9.  `Daphne-Root-Path` is dropped, a doubled or missing `Host` refused. Daphne obeys the one and accepts the other.
10. Connections are limited, in all and per address, and told so by a 503. Daphne's end with the descriptors. The limit
    of open files is raised for them, and where it cannot be, they are fewer.
11. SIGTERM, SIGINT and, unless it is ignored, SIGHUP: the ports close first, applications finish within a grace time,
    then they are cancelled, and the process ends. Daphne's ports stay open, a stubborn application holds its exit for
    ever and a half-sent request breaks it (`KeyError: 'application_instance'`, daphne/server.py:323); SIGHUP kills it.
12. WebSockets are refused, h2c and other upgrades ignored, HTTP/2 by prior knowledge refused: nothing here speaks
    them.
13. The access line goes through `redact`, a stream that ends by a disconnect has one too, and no warning holds the
    repr of a request. Daphne prints the path in all of them, and in this project the path holds the session key.
14. Folded headers, `Transfer-Encoding: identity` or in HTTP/1.0, control characters, targets that are not a path and
    lengths beyond 64 bits are refused, see `head`. Twisted lets them through, or raises on thousands of digits.
15. Requests are read by two regular expressions and answered by one `send(2)`. Twisted parses headers line by line and
    bodies' Content-Type with the email package, formats an access line that Daphne throws away, and waits for a turn
    of the loop before it writes.
16. An application runs in a fresh context. In Daphne a pipelined request is started from the `send` of the one before
    it and sees the context variables of that one, which behind a proxy may be another user's.

Over TLS (`-e ssl:…`) all of it holds, except that an answer takes Twisted's way and not one `send(2)`.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
from typing import Any

import daphne.server
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.logger import STDLibLogObserver, globalLogBeginner

from gateway.serving.bodies import UnfinishedBodies
from gateway.serving.channel import Channel
from gateway.serving.connections import ChannelFactory
from gateway.serving.descriptors import AcceptFailures, fit_connections
from gateway.serving.exchange import Exchange
from gateway.serving.limits import Hook, ServingHooks, ServingLimits
from gateway.serving.shutdown import ShutdownWatch, drop_unwritable_streams
from gateway.serving.timetable import (
    CANCELLATION_SECONDS,
    DRAIN_ALLOWANCE_SECONDS,
    EXIT_SECONDS,
    FLUSH_SECONDS,
    SHUTDOWN_MARGIN_SECONDS,
)
from gateway.serving.turns import BodyTurns

logger = logging.getLogger(__name__)


class Server(daphne.server.Server):  # type: ignore[misc]
    """Serve one ASGI application over HTTP/1.x."""

    def __init__(
        self,
        *args: Any,
        limits: ServingLimits | None = None,
        hooks: ServingHooks | None = None,
        has_guard: bool = True,
        **kwargs: Any,
    ) -> None:
        """Take what Daphne's command line passes, and our limits and hooks.

        `has_guard` is false where another process ends this one if it is frozen.
        """
        super().__init__(*args, **kwargs)
        self.limits = limits or ServingLimits()
        self.hooks = hooks or ServingHooks()
        self.is_draining = False
        self.unfinished_bodies: UnfinishedBodies[Channel] = UnfinishedBodies(self.limits.unfinished_bodies_bytes)
        self.connections: dict[Exchange, asyncio.Task[None]] = {}
        """What runs: an exchange stays until its application has ended. Daphne keeps more under this name."""
        self._ports: list[Any] = []
        self._has_guard = has_guard
        self._watch: ShutdownWatch | None = None
        self._something_ended: asyncio.Event | None = None
        self._draining: asyncio.Task[None] | None = None
        self._hook_tasks: set[asyncio.Task[None]] = set()
        if self.http_timeout:
            logger.warning("--http-timeout is ignored: it would end every stream")

    def run(self) -> None:
        """Listen, and return when the server has been stopped."""
        self.limits = fit_connections(self.limits)
        self.http_factory = ChannelFactory(self)
        if self.verbosity <= 1:
            globalLogBeginner.beginLoggingTo([AcceptFailures()], redirectStandardIO=False, discardBuffer=True)
        else:
            globalLogBeginner.beginLoggingTo([AcceptFailures(), STDLibLogObserver(__name__)])
        self._loop: asyncio.AbstractEventLoop = reactor._asyncioEventloop
        self.body_turns = BodyTurns(self._loop.call_soon)
        asyncio.set_event_loop(self._loop)
        if self.verbosity >= 3:
            self._loop.set_debug(True)
        self._context = contextvars.copy_context()

        reactor.callLater(1, self.application_checker)
        reactor.callLater(self._check_seconds, self.timeout_checker)
        for description in self.endpoints:
            logger.info("Configuring endpoint %s", description)
            # A string as Daphne's command line takes it, or an endpoint of Twisted's.
            endpoint = description
            if isinstance(description, str):
                endpoint = serverFromString(reactor, self._with_backlog(description))
            listening = endpoint.listen(self.http_factory)
            listening.addCallback(self.listen_success)
            listening.addErrback(self.listen_error)
            self.listeners.append(listening)
        if self.abort_start:
            return
        if self.signal_handlers and threading.current_thread() is threading.main_thread():
            limit = self.limits.shutdown_grace_seconds + SHUTDOWN_MARGIN_SECONDS
            self._watch = ShutdownWatch(self._drain_from_thread, limit, has_guard=self._has_guard)
            self._watch.install()
            self._loop.call_soon(self._watch.freezes.start)
        self._loop.call_soon(self._call_hook, "on_start", self.hooks.on_start)
        if self.ready_callable:
            self.ready_callable()
        reactor.run(installSignalHandlers=False)
        if self._watch is not None:
            self._watch.end_within(EXIT_SECONDS)
            drop_unwritable_streams()

    def listen_success(self, port: Any) -> None:
        """Keep the port, to close it when the server drains."""
        super().listen_success(port)
        self._ports.append(port)

    # Applications

    def serve(self, exchange: Exchange) -> None:
        """Run the application for a request."""
        # Difference 16. The channel may have been called from another application's `send`.
        task = self._loop.create_task(self._run_application(exchange), context=self._context.copy())
        self.connections[exchange] = task
        task.add_done_callback(lambda done: self._application_ended(exchange, done))

    async def _run_application(self, exchange: Exchange) -> None:
        await self.application(exchange.scope(), exchange.receive, exchange.send)

    def _application_ended(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self.connections.pop(exchange, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("Exception inside application: %s", error, exc_info=error)
        try:
            # A cancelled one was cancelled by the shutdown or for its lateness; either is no fault of the request.
            exchange.application_ended(failure_status=503 if task.cancelled() else 500)
        finally:
            self.something_ended()

    def application_checker(self) -> None:
        """Cancel applications that have not ended in time after their response or their client was gone."""
        try:
            latest = time.monotonic() - self.application_close_timeout
            for exchange, task in list(self.connections.items()):
                if exchange.ended_at is not None and exchange.ended_at < latest:
                    if not exchange.was_killed:
                        logger.warning("Application instance took too long to shut down and was killed.")
                    exchange.was_killed = True
                    task.cancel()
        except Exception:
            logger.exception("Applications could not be checked")
        finally:
            reactor.callLater(1, self.application_checker)

    def timeout_checker(self) -> None:
        """Enforce the deadlines of every connection."""
        try:
            self._check_deadlines()
        finally:
            reactor.callLater(self._check_seconds, self.timeout_checker)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for channel in list(self.http_factory.channels):
            try:
                channel.check_deadlines(now)
            except Exception:
                logger.exception("Deadlines of a connection could not be checked")

    @property
    def _check_seconds(self) -> float:
        limits = self.limits
        shortest = min(
            limits.header_timeout_seconds,
            limits.body_grace_seconds,
            limits.body_timeout_seconds,
            limits.keep_alive_seconds,
            limits.slow_reader_seconds,
        )
        return min(1.0, shortest / 4)

    # The end

    def drain(self) -> None:
        """Begin the shutdown; on the event loop's thread. A second call changes nothing."""
        if self.is_draining:
            return
        self.is_draining = True
        self._draining = self._loop.create_task(self._finish())

    def _drain_from_thread(self) -> None:
        self._loop.call_soon_threadsafe(self.drain)

    def something_ended(self) -> None:
        """Let a shutdown look again: an application or a connection has ended."""
        if self._something_ended is not None:
            self._something_ended.set()

    async def _finish(self) -> None:
        grace_ends = time.monotonic() + self.limits.shutdown_grace_seconds
        logger.info("Shutting down: %d requests in flight", len(self.connections))
        try:
            await self._stop_listening()
            self._call_hook("on_drain", self.hooks.on_drain)
            for channel in list(self.http_factory.channels):
                channel.drain()
            self._loop.call_later(DRAIN_ALLOWANCE_SECONDS + 0.01, self._check_deadlines)
            await self._wait_until_idle(grace_ends)
            cancelled = list(self.connections.values())
            if cancelled:
                logger.warning("Cancelling %d applications that did not end in time", len(cancelled))
                for task in cancelled:
                    task.cancel()
            if cancelled or self.http_factory.channels:
                await self._wait_until_idle(time.monotonic() + CANCELLATION_SECONDS)
            left = grace_ends + SHUTDOWN_MARGIN_SECONDS - FLUSH_SECONDS - time.monotonic()
            await self._stop_project(left)
        except Exception:
            logger.exception("Shutdown was not orderly")
        finally:
            self.stop()

    async def _stop_project(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(_run_hook(self.hooks.on_stop), timeout=seconds)
        except TimeoutError:
            logger.warning("on_stop did not finish in time and was cancelled")

    async def _stop_listening(self) -> None:
        for port in self._ports:
            closed = port.stopListening()
            if closed is not None:
                await closed.asFuture(self._loop)

    async def _wait_until_idle(self, until: float) -> None:
        self._something_ended = asyncio.Event()
        while self.connections or self.http_factory.channels:
            self._something_ended.clear()
            try:
                await asyncio.wait_for(self._something_ended.wait(), until - time.monotonic())
            except TimeoutError:
                return

    def _call_hook(self, name: str, hook: Hook) -> None:
        async def run() -> None:
            try:
                await _run_hook(hook)
            except Exception:
                logger.exception("%s failed", name)

        task = self._loop.create_task(run())
        self._hook_tasks.add(task)
        task.add_done_callback(self._hook_tasks.discard)

    def _with_backlog(self, description: str) -> str:
        if "backlog=" in description or not description.startswith(("tcp:", "tcp6:", "ssl:", "unix:")):
            return description
        return f"{description}:backlog={self.limits.backlog}"


async def _run_hook(hook: Hook) -> None:
    result = hook()
    if inspect.isawaitable(result):
        await result
