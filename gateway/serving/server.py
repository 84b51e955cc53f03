"""Our Daphne: a subclass of Daphne's server, made for long-lived streams and for strangers on the network.

Importing this module imports `daphne.server`, which installs Twisted's asyncio reactor. Only a process that is going to
run Daphne does that (see `gateway.serving.install_if_daphne`).

Daphne's command line, endpoints, proxy headers, access log and ASGI messages stay as they are. These are the
differences and their reasons (measured with Daphne 4.2.3 and Twisted 26.10):

1.  The periodic checks survive an exception, and the end of an application is noticed at once. Daphne's
    `application_checker` stops for ever at the first exception after `http.response.start`: later errors get no 500.
2.  `send` waits while the socket is full. In Daphne it never does: 64 MB for a client that does not read cost 63 MB.
3.  A client that does not take `buffered_bytes` (or all there is) in `slow_reader_seconds` is cut. Daphne cuts nobody.
4.  Headers and bodies have deadlines, and bodies a lowest speed. Daphne never cuts a client that sends byte by byte.
    (Daphne's own `--http-timeout` would end every stream and is ignored.)
5.  A body that is too large is refused from its header, or as soon as it has grown too large. Bodies are held in
    memory, with a limit for all that are being read. Twisted writes a body of more than 100 kB to a temporary file,
    without a limit, before the application starts.
6.  TCP keepalive and TCP_USER_TIMEOUT: a peer that vanished without a FIN is noticed within a minute. In Daphne it
    never is.
7.  The listen backlog is 2048 instead of 50, so that a busy loop does not turn clients away.
8.  Keep-alive is 75 s. Twisted's 60 s are those of common load balancers, so both sides would close at once.
9.  `Daphne-Root-Path` is dropped, and a repeated or missing `Host` is refused. Daphne obeys the first and accepts the
    others.
10. Connections are limited, in all and for each address; one more is answered 503. Daphne accepts them until the
    process has no descriptors left. The limit of open files is raised as far as that is allowed.
11. SIGTERM, SIGINT and SIGHUP (unless that is ignored): the ports are closed first, applications finish within a grace
    time, then they are cancelled, and the process ends. In Daphne the ports stay open, an application that ignores its
    cancellation holds up the exit for ever, a half-sent request breaks it (`KeyError: 'application_instance'`,
    daphne/server.py:323), and SIGHUP kills the process.
12. WebSockets are refused, h2c and other upgrades are ignored, HTTP/2 without an upgrade is refused. Nothing here
    speaks them.
13. The access line goes through `redact`, a stream that ends by a disconnect has one too, and no warning contains the
    repr of a request. Daphne prints the path in all of them, and in this project the path contains the session key.
14. Folded headers, `Transfer-Encoding: identity` or in HTTP/1.0, control characters, malformed trailers, targets that
    are neither a path nor a URL, and lengths beyond 64 bits are refused, see `head` and `chunks`. Twisted lets them
    through, or raises on thousands of digits.
15. A request is read by two regular expressions and answered by one `send(2)`. Twisted parses headers line by line and
    Content-Type with the email package, formats an access line that Daphne throws away, and waits for another turn of
    the loop before it writes.
16. An application runs in a fresh context. In Daphne a pipelined request is started from the `send` of the request
    before it and sees its context variables. Behind a proxy these may be another user's.
17. Few large bodies are read in one turn of the loop, and a chunked body has a budget for its framing, see `turns` and
    `chunks`. In Twisted a small request waits while all other sockets are read, up to 64 KiB of each.

18. The loop is uvloop's where that is installed, and carries plain TCP itself, see `loop_transport`.

Over TLS (`-e ssl:…`) all of this holds, except 18, and that a response is written in Twisted's way and not by one
`send(2)`.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import daphne.server
from daphne.access import AccessLogGenerator
from twisted.internet import reactor, tcp
from twisted.internet.endpoints import serverFromString
from twisted.logger import STDLibLogObserver, globalLogBeginner

from gateway.serving.bodies import UnfinishedBodies
from gateway.serving.connection import HttpConnection
from gateway.serving.connections import ConnectionFactory
from gateway.serving.descriptors import AcceptFailures, fit_connections
from gateway.serving.exchange import Exchange
from gateway.serving.handover import Handover
from gateway.serving.limits import Hook, ServingHooks, ServingLimits
from gateway.serving.loop_transport import LoopTransport, serve_on_loop
from gateway.serving.shutdown import ShutdownWatch, drop_unwritable_streams
from gateway.serving.sockets import accept_all_before_closing
from gateway.serving.timetable import (
    CANCELLATION_SECONDS,
    DRAIN_ALLOWANCE_SECONDS,
    EXIT_SECONDS,
    FLUSH_SECONDS,
    SHUTDOWN_MARGIN_SECONDS,
)
from gateway.serving.turns import BodyTurns

try:
    import uvloop
except ImportError:  # it does not exist for Windows
    uvloop = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

GIVING_PAUSE_SECONDS: Final = 0.002
"""How long a process that ends waits before it gives more connections to its successor."""


class HttpServer(daphne.server.Server):  # type: ignore[misc]
    """Serves one ASGI application over HTTP/1.x."""

    def __init__(
        self,
        *args: Any,
        limits: ServingLimits | None = None,
        hooks: ServingHooks | None = None,
        has_guard: bool = True,
        handover: Handover | None = None,
        **kwargs: Any,
    ) -> None:
        """Take what Daphne's command line passes, and our limits and hooks.

        `has_guard` is false where another process ends this one if it is frozen. `handover`: how this process and
        others of one host give each other connections.
        """
        super().__init__(*args, **kwargs)
        self.limits = limits or ServingLimits()
        self.hooks = hooks or ServingHooks()
        if isinstance(kwargs.get("action_logger"), AccessLogGenerator):
            self.action_logger: Any = self.hooks.make_access_log(kwargs["action_logger"].stream)
        # Only connections that the loop carries can be given away.
        self.handover = handover if uvloop is not None else None
        self.is_draining = False
        self.unfinished_bodies: UnfinishedBodies[HttpConnection] = UnfinishedBodies(self.limits.unfinished_bodies_bytes)
        self.connections: dict[Exchange, asyncio.Task[None]] = {}
        """The running applications. Daphne keeps something else under this name."""
        self._ports: list[Any] = []
        self._has_guard = has_guard
        self._watch: ShutdownWatch | None = None
        self._something_ended: asyncio.Event | None = None
        self._draining: asyncio.Task[None] | None = None
        self._giving: asyncio.Task[None] | None = None
        self._hook_tasks: set[asyncio.Task[None]] = set()
        if self.http_timeout:
            logger.warning("--http-timeout is ignored: it would end every stream")

    def run(self) -> None:
        """Listen. Returns when the server has been stopped."""
        self.limits = fit_connections(self.limits)
        self.http_factory = ConnectionFactory(self)
        if self.verbosity <= 1:
            globalLogBeginner.beginLoggingTo([AcceptFailures()], redirectStandardIO=False, discardBuffer=True)
        else:
            globalLogBeginner.beginLoggingTo([AcceptFailures(), STDLibLogObserver(__name__)])
        if uvloop is not None:
            _run_reactor_on(uvloop.new_event_loop())
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
        if self.handover is not None:
            self.handover.listen(self._loop, self._take_connection)
        if self.signal_handlers and threading.current_thread() is threading.main_thread():
            limit = self.limits.shutdown_grace_seconds + SHUTDOWN_MARGIN_SECONDS
            self._watch = ShutdownWatch(self._drain_from_thread, limit, has_guard=self._has_guard)
            self._watch.install()
            self._loop.call_soon(self._watch.resume)
            self._loop.call_soon(self._watch.freezes.start)
        self._loop.call_soon(self._call_hook, "on_start", self.hooks.on_start)
        if self.ready_callable:
            self.ready_callable()
        reactor.run(installSignalHandlers=False)
        if self._watch is not None:
            self._watch.end_within(EXIT_SECONDS)
            drop_unwritable_streams()

    def listen_success(self, port: Any) -> None:
        """Remember the port, which is closed when the server drains."""
        super().listen_success(port)
        accept_all_before_closing(port)
        if uvloop is not None:
            serve_on_loop(port, self._loop, _is_served)
        self._ports.append(port)

    def _take_connection(self, accepted: socket.socket, received: bytes) -> None:
        """Serve a connection that another process has accepted, and that it has `received` these bytes from.

        Raises:
            OSError: the client has left.
        """
        port = next(port for port in self._ports if type(port) is tcp.Port)
        address = accepted.getpeername()
        # As twisted.internet.tcp.Port.doRead does with one that it has accepted itself.
        connection = self.http_factory.buildProtocol(port._buildAddr(address))
        transport = port.transport(accepted, connection, address, port, 0, reactor)
        if isinstance(transport, LoopTransport):
            connection.was_taken = bool(received)
            connection.was_idle = not received
            transport.begin_with(received)
        connection.makeConnection(transport)

    # Applications

    def serve(self, exchange: Exchange) -> None:
        """Run the application for a request."""
        # Difference 16: this may be called from another application's `send`.
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
            # It was cancelled by the shutdown or because it was late. Neither is the fault of the request.
            exchange.application_ended(failure_status=503 if task.cancelled() else 500)
        finally:
            self.something_ended()

    def application_checker(self) -> None:
        """Cancel applications that are still running long after their response was sent or their client left."""
        try:
            latest = time.monotonic() - self.application_close_timeout
            for exchange, task in list(self.connections.items()):
                if exchange.ended_at is not None and exchange.ended_at < latest:
                    if not exchange.was_killed:
                        logger.warning("Application instance took too long to shut down and was killed.")
                    exchange.was_killed = True
                    task.cancel()
        except Exception:
            logger.exception("The running applications could not be checked")
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
        for connection in list(self.http_factory.open):
            try:
                connection.check_deadlines(now)
            except Exception:
                logger.exception("The deadlines of a connection could not be checked")

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
        """Begin the shutdown. Called on the event loop; a second call changes nothing."""
        if self.is_draining:
            return
        self.is_draining = True
        self._draining = self._loop.create_task(self._finish())

    def _drain_from_thread(self) -> None:
        self._loop.call_soon_threadsafe(self.drain)

    def something_ended(self) -> None:
        """Note that an application or a connection has ended. A shutdown may wait for that."""
        if self._something_ended is not None:
            self._something_ended.set()

    async def _finish(self) -> None:
        grace_ends = time.monotonic() + self.limits.shutdown_grace_seconds
        logger.info("Shutting down: %d requests in flight", len(self.connections))
        try:
            await self._stop_listening()
            self._call_hook("on_drain", self.hooks.on_drain)
            for connection in list(self.http_factory.open):
                connection.drain()
            self._loop.call_later(DRAIN_ALLOWANCE_SECONDS + 0.01, self._check_deadlines)
            self.give_idle_connections()
            await self._wait_until_idle(grace_ends)
            cancelled = list(self.connections.values())
            if cancelled:
                logger.warning("Cancelling %d applications that did not end in time", len(cancelled))
                for task in cancelled:
                    task.cancel()
            if cancelled or self.http_factory.open:
                await self._wait_until_idle(time.monotonic() + CANCELLATION_SECONDS)
            left = grace_ends + SHUTDOWN_MARGIN_SECONDS - FLUSH_SECONDS - time.monotonic()
            await self._stop_project(left)
        except Exception:
            logger.exception("The shutdown was not orderly")
        finally:
            if self._giving is not None:
                self._giving.cancel()
            if self.handover is not None:
                self.handover.close()
            self.stop()

    async def _stop_project(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(_run_hook(self.hooks.on_stop), timeout=seconds)
        except TimeoutError:
            logger.warning("The on_stop hook did not finish in time and was cancelled")

    async def _stop_listening(self) -> None:
        for port in self._ports:
            closed = port.stopListening()
            if closed is not None:
                await closed.asFuture(self._loop)
        if self.handover is not None:
            self.handover.stop_taking()

    def give_idle_connections(self) -> None:
        """Give idle connections to the process that serves instead of this one, until their time is up."""
        if self.handover is not None and (self._giving is None or self._giving.done()):
            self._giving = self._loop.create_task(self._give_while_idle(self.handover))

    async def _give_while_idle(self, handover: Handover) -> None:
        until = time.monotonic() + DRAIN_ALLOWANCE_SECONDS
        while time.monotonic() < until:
            waiting = [connection for connection in self.http_factory.open if connection.waits_for_successor]
            if not waiting:
                return
            try:
                for connection in waiting:
                    if not connection.give_to_successor(handover):
                        return
            except BlockingIOError:  # it must take the last ones first
                pass
            await asyncio.sleep(GIVING_PAUSE_SECONDS)

    async def _wait_until_idle(self, until: float) -> None:
        self._something_ended = asyncio.Event()
        while self.connections or self.http_factory.open:
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
                logger.exception("The %s hook failed", name)

        task = self._loop.create_task(run())
        self._hook_tasks.add(task)
        task.add_done_callback(self._hook_tasks.discard)

    def _with_backlog(self, description: str) -> str:
        if "backlog=" in description or not description.startswith(("tcp:", "tcp6:", "ssl:", "unix:")):
            return description
        return f"{description}:backlog={self.limits.backlog}"


def _run_reactor_on(loop: asyncio.AbstractEventLoop) -> None:
    """Let Twisted use `loop`, in place of the loop of asyncio's own with which `daphne.server` has installed it.

    The reactor must not be running yet.
    """
    if "ASGI_THREADS" in os.environ:  # as in daphne/server.py
        loop.set_default_executor(ThreadPoolExecutor(int(os.environ["ASGI_THREADS"])))
    readers = reactor.getReaders()
    for reader in readers:
        reactor.removeReader(reader)
    reactor._asyncioEventloop.close()
    reactor._asyncioEventloop = loop
    for reader in readers:
        reactor.addReader(reader)


def _is_served(protocol: object) -> bool:
    """Whether a connection reads requests. One that only refuses does so before the loop has taken its socket."""
    return isinstance(protocol, HttpConnection) and not protocol.is_surplus


async def _run_hook(hook: Hook) -> None:
    result = hook()
    if inspect.isawaitable(result):
        await result
