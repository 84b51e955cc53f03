"""How `manage.py serve` runs several workers: the supervisor's process, and that of a worker.

What they do is in `gateway.fleet`; here it is put together with the settings and with the host.
"""

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.core.management.base import CommandError
from django.db import connection
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from gateway import metrics
from gateway.access.limits import IN_MEMORY
from gateway.apps import GatewayConfig
from gateway.collector import look_seldom_for_garbage
from gateway.conf import conf
from gateway.conf.kinds import url_host
from gateway.fleet.members import Members
from gateway.fleet.moved_sessions import end_moved_sessions
from gateway.fleet.ownership import Node, Ownership, handover_path, slot_path
from gateway.fleet.supervisor import Supervisor
from gateway.fleet.worker import WorkerLink
from gateway.host.metrics_port import MetricsPort
from gateway.management.inherited_socket import address_of, endpoint_of
from gateway.management.ports import require_free_port
from gateway.records.processes import Place
from gateway.serving.service_manager import ServiceManager

if TYPE_CHECKING:
    from gateway.host.host import Host

BACKLOG: Final = 2048

FIRST_VIEW_SECONDS: Final = 2.0
"""How long a worker waits at its start to know the other nodes."""


def require_what_nodes_need() -> None:
    """Check what several machines have to have in common.

    Raises:
        CommandError: it is missing.
    """
    if not conf.peer_address:
        return
    if connection.vendor == "sqlite":
        raise CommandError(
            "GUMCP_PEER_ADDRESS is set, and the database is SQLite, which machines cannot share. "
            "Set DATABASE_URL to a PostgreSQL that all machines use."
        )
    if not conf.secret_key:
        raise CommandError(
            "GUMCP_PEER_ADDRESS is set without GUMCP_SECRET_KEY. Set the same one on all machines: they trust each "
            "other by it."
        )
    host, port = _peer()
    require_free_port(host, port, "GUMCP_PEER_ADDRESS")


def supervise(
    listener: socket.socket,
    workers: int,
    *,
    watches_files: bool,
    on_ready: Callable[[], object],
    service_manager: ServiceManager,
) -> int:
    """Run workers until this process is told to stop. Returns the exit status."""

    def command(descriptor: int) -> list[str]:
        words = [sys.executable, sys.argv[0], "serve", "--worker", str(descriptor)]
        return [*words, "--reload"] if watches_files else words

    look_seldom_for_garbage()
    # One port serves the metrics of all workers: the supervisor's.
    environment = {**os.environ, "GUMCP_METRICS_PORT": "0"}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gumcp-", ignore_cleanup_errors=True))
        stack.enter_context(listener)
        if conf.limits_storage_url == IN_MEMORY:
            # A key has its limit once, not once for each worker.
            environment["GUMCP_LIMITS_STORAGE_URL"] = f"file://{folder}/limits.sqlite3"
        peer_listener = None
        if conf.peer_address:
            host, port = _peer()
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            peer_listener = stack.enter_context(socket.create_server((host, port), family=family, backlog=BACKLOG))
        supervisor = Supervisor(
            listener,
            workers,
            command,
            folder=Path(folder),
            peer_listener=peer_listener,
            grace_seconds=conf.shutdown_grace_seconds,
            environment=environment,
            on_ready=on_ready,
            service_manager=service_manager,
        )
        stack.enter_context(serving_metrics(supervisor.metrics))
        return supervisor.run()


@contextmanager
def serving_metrics(metrics: Collector) -> Iterator[None]:
    """Serve the metrics of all workers on the port of the settings, with the limits of that port."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    port = MetricsPort(registry)
    port.start()
    try:
        yield
    finally:
        port.stop()


def serve_as_worker(
    descriptor: int,
    load: "Callable[[], tuple[Host, Callable[..., Any]]]",
    run: "Callable[[Host, str, Callable[[], None]], None]",
) -> None:
    """Serve what the supervisor at the other end of `descriptor` assigns.

    `load` builds the host, once its place is known. `run` runs the server (host, address, function).
    """
    link = WorkerLink(descriptor)
    assignment = link.assignment
    with socket.socket(fileno=os.dup(assignment.listener)) as listener:
        family, (address, port) = listener.family, address_of(listener)
    node = f"{url_host(_peer()[0])}:{port}" if conf.peer_address else ""
    ownership = Ownership(assignment.slot, assignment.slots, assignment.folder, node)
    GatewayConfig.current().place = Place(assignment.slot, node, conf.peer_address)
    host, application = load()

    # Imported here: this installs Twisted's reactor, which only a process that serves needs.
    from gateway.fleet.relay import RelayingApplication
    from gateway.fleet.signatures import Signatures
    from gateway.host.serving import serving_hooks, serving_limits
    from gateway.serving.handover import Handover
    from gateway.serving.server import HttpServer

    hooks = serving_hooks(host)
    access_log = hooks.make_access_log(sys.stdout)
    endpoints: list[Any] = [
        endpoint_of(assignment.listener, family),
        f"unix:{assignment.socket_path}:mode=600",
    ]
    peer_port = None
    if assignment.peer_listener is not None:
        with socket.socket(fileno=os.dup(assignment.peer_listener)) as listener:
            peer_family, (_, peer_port) = listener.family, address_of(listener)
        endpoints.append(endpoint_of(assignment.peer_listener, peer_family))

    def is_elsewhere(key: bytes) -> bool:
        route = ownership.find(key)
        return route is not None and route.is_node

    def set_nodes(nodes: dict[str, Node]) -> None:
        ownership.set_nodes(nodes)
        host.loop.call_soon(lambda: relaying.keep_nodes({node.address for node in nodes.values()}))
        host.loop.call_soon(lambda: host.loop.start_task(end_moved_sessions(host.sessions, is_elsewhere)))

    def log(protocol: str, action: str, details: dict[str, Any]) -> None:
        # What was relayed here is in the log of the worker that the client is connected to.
        if details.get("client"):
            access_log(protocol, action, details)

    def start() -> None:
        host.ensure_started()
        link.start()

    def leave() -> None:
        ownership.node_has_left = True

    def drain() -> None:
        ownership.has_left = True
        hooks.on_drain()

    async def stop() -> None:
        if members is not None:
            await asyncio.to_thread(members.stop)
        stopping = hooks.on_stop()
        if stopping is not None:
            await stopping

    members = Members(node, set_nodes) if node else None
    relaying = RelayingApplication(
        application,
        ownership.find,
        peer_port=peer_port,
        signatures=Signatures(settings.SECRET_KEY) if node else None,
        on_node_refuses=members.look_soon if members is not None else lambda: None,
    )
    link.on_leave = leave
    if members is not None:
        members.start()
        # A node that knew of no other one would serve everybody's users itself.
        members.has_tried.wait(FIRST_VIEW_SECONDS)
    server = HttpServer(
        application=relaying,
        endpoints=endpoints,
        action_logger=log,
        limits=replace(serving_limits(), has_successor=True, peer_port=peer_port),
        hooks=replace(hooks, on_start=start, on_drain=drain, on_stop=stop),
        # The supervisor ends a worker that is frozen.
        has_guard=False,
        handover=Handover(
            handover_path(assignment.socket_path),
            relaying.find_worker,
            metrics.given_connections.inc,
            successor=handover_path(slot_path(assignment.folder, assignment.slot)),
        ),
    )
    run(host, address, server.run)


def _peer() -> tuple[str, int]:
    host, _, port = conf.peer_address.rpartition(":")
    return host.strip("[]"), int(port)
