"""`manage.py serve`: Daphne with this host's settings. What `make run` calls."""

import itertools
import os
import socket
import sys
import tempfile
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.utils.crypto import get_random_string
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector

from gateway.access.identity import current_identity
from gateway.access.redaction import redact
from gateway.apps import GatewayConfig
from gateway.conf import SettingsError, conf
from gateway.conf.kinds import Address, Count, Kind, Port
from gateway.http.addresses import is_loopback
from gateway.http.listening import require_keys_or_loopback
from gateway.management.error_display import AuthorHandler
from gateway.management.next_steps import next_steps
from gateway.management.ports import require_free_port
from gateway.records.processes import Place

if TYPE_CHECKING:
    from gateway.host.host import Host

T = TypeVar("T")


class Command(BaseCommand):
    """Checks the ports, prepares the database if asked to, serves, and says what to open next."""

    help = "Serve with Daphne."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--host", type=_as(Address()), default=conf.host, help="address to listen on (GUMCP_HOST, %(default)s)"
        )
        parser.add_argument(
            "--port", type=_as(Port()), default=conf.port, help="port to listen on (GUMCP_PORT, %(default)s)"
        )
        parser.add_argument(
            "--prepare", action="store_true", help="first migrate the database, and make an operator if there is none"
        )
        parser.add_argument(
            "--workers",
            type=_as(Count(at_least=1)),
            default=conf.workers,
            help="processes that serve as one host (GUMCP_WORKERS, %(default)s)",
        )
        # How a supervisor starts its workers: the descriptor of their end of a socket pair.
        parser.add_argument("--worker", type=int, help=SUPPRESS)
        parser.add_argument("--reload", action="store_true", help="reload servers as their files change")

    def handle(self, *args: Any, **options: Any) -> None:
        host, port = options["host"], options["port"]
        if isinstance(sys.stdout, TextIOWrapper):
            # Through a pipe, the operator's login and the access log would appear only when a buffer is full.
            sys.stdout.reconfigure(line_buffering=True)
        if options["worker"] is not None:
            self._serve_as_worker(options["worker"], watches_files=options["reload"])
            return
        try:
            require_keys_or_loopback([host])
        except SettingsError as error:
            raise CommandError(str(error)) from None
        require_free_port(host, port, "GUMCP_PORT")
        if conf.metrics_port:
            if (conf.metrics_host, conf.metrics_port) == (host, port):
                raise CommandError(
                    f"GUMCP_PORT and GUMCP_METRICS_PORT are both {port}. Choose another for one of them."
                )
            require_free_port(conf.metrics_host, conf.metrics_port, "GUMCP_METRICS_PORT")
        if options["prepare"]:
            call_command("migrate", verbosity=0, interactive=False)
            self._make_operator()

        if options["workers"] > 1:
            sys.exit(self._supervise(host, port, options["workers"], watches_files=options["reload"]))

        # Imported here: it builds the host, which only a process that serves may do.
        from daphne.access import AccessLogGenerator
        from daphne.endpoints import build_endpoint_description_strings

        from gateway.host.serving import serving_hooks, serving_limits
        from gateway.serving.server import HttpServer
        from gumcp_site import asgi

        asgi.host.watches_files = options["reload"]
        server = HttpServer(
            application=asgi.application,
            endpoints=build_endpoint_description_strings(host=host, port=port),
            action_logger=AccessLogGenerator(sys.stdout),
            limits=serving_limits(),
            hooks=serving_hooks(asgi.host),
            ready_callable=lambda: self.stdout.write(next_steps(host, port, GatewayConfig.current().registry)),
        )
        with self._logging_for_author(asgi.host, host, is_whole=options["traceback"]):
            server.run()

    @contextmanager
    def _logging_for_author(self, host: "Host", address: str, *, is_whole: bool = False) -> Iterator[None]:
        """Log the errors of servers whole inside the block, on their author's own machine and with --reload only."""
        if not (host.watches_files and is_loopback(address) and not conf.is_production):
            yield
            return

        def clean(text: str) -> str:
            identity = current_identity.get()
            return host.redactor(redact(text, None if identity is None else identity.api_key))

        line = "{asctime} {levelname} {name}: {message}"
        with AuthorHandler(clean, is_whole=is_whole, line=line).in_use():
            yield

    def _supervise(self, host: str, port: int, workers: int, *, watches_files: bool) -> int:
        """Run workers until this process is told to stop. Returns the exit status."""
        from gateway.access.limits import IN_MEMORY
        from gateway.fleet.supervisor import Supervisor

        def command(descriptor: int) -> list[str]:
            words = [sys.executable, sys.argv[0], "serve", "--worker", str(descriptor)]
            return [*words, "--reload"] if watches_files else words

        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # One port serves the metrics of all workers: the supervisor's.
        environment = {**os.environ, "GUMCP_METRICS_PORT": "0"}
        with (
            tempfile.TemporaryDirectory(prefix="gumcp-", ignore_cleanup_errors=True) as folder,
            socket.create_server((host, port), family=family, backlog=2048) as listener,
        ):
            if conf.limits_storage_url == IN_MEMORY:
                # A key has its limit once, not once for each worker.
                environment["GUMCP_LIMITS_STORAGE_URL"] = f"file://{folder}/limits.sqlite3"
            supervisor = Supervisor(
                listener,
                workers,
                command,
                folder=Path(folder),
                grace_seconds=conf.shutdown_grace_seconds,
                environment=environment,
                on_ready=lambda: self.stdout.write(next_steps(host, port, None, workers)),
            )
            with self._serving_metrics(supervisor.metrics):
                return supervisor.run()

    @contextmanager
    def _serving_metrics(self, metrics: Collector) -> Iterator[None]:
        if not conf.metrics_port:
            yield
            return
        registry = CollectorRegistry(auto_describe=False)
        registry.register(metrics)
        server, thread = start_http_server(conf.metrics_port, conf.metrics_host, registry)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _serve_as_worker(self, descriptor: int, *, watches_files: bool) -> None:
        from gateway.fleet.worker import Ownership, WorkerLink

        link = WorkerLink(descriptor)
        assignment = link.assignment
        ownership = Ownership(assignment)
        GatewayConfig.current().place = Place(assignment.slot)

        from daphne.access import AccessLogGenerator

        from gateway.fleet.relay import RelayingApplication
        from gateway.host.serving import serving_hooks, serving_limits
        from gateway.serving.server import HttpServer
        from gumcp_site import asgi

        asgi.host.watches_files = watches_files
        hooks = serving_hooks(asgi.host)
        access_log = AccessLogGenerator(sys.stdout)

        def log(protocol: str, action: str, details: dict[str, Any]) -> None:
            # What was relayed here is in the log of the worker that the client is connected to.
            if details.get("client"):
                access_log(protocol, action, details)

        def start() -> None:
            asgi.host.ensure_started()
            link.start()

        def drain() -> None:
            ownership.has_left = True
            hooks.on_drain()

        from twisted.internet import reactor
        from twisted.internet.endpoints import AdoptedStreamServerEndpoint

        with socket.socket(fileno=os.dup(assignment.listener)) as listener:
            family, address = listener.family, str(listener.getsockname()[0])
        server = HttpServer(
            application=RelayingApplication(asgi.application, ownership.find),
            endpoints=[
                AdoptedStreamServerEndpoint(reactor, assignment.listener, family),
                f"unix:{assignment.socket_path}:mode=600",
            ],
            action_logger=log,
            limits=serving_limits(),
            hooks=replace(hooks, on_start=start, on_drain=drain),
            # The supervisor ends a worker that is frozen.
            has_guard=False,
        )
        with self._logging_for_author(asgi.host, address):
            server.run()

    def _make_operator(self) -> None:
        users = get_user_model()
        if users.objects.filter(is_superuser=True).exists():
            return
        # A caller may be called operator (`create_key operator`). That user must not become an operator unasked.
        names = itertools.chain(["operator"], (f"operator-{number}" for number in itertools.count(2)))
        name = next(name for name in names if not users.objects.filter(username=name).exists())
        password = get_random_string(20)
        users.objects.create_superuser(name, password=password)
        self.stdout.write(
            f"\nMade a login for the admin. It is shown only now:\n    name      {name}\n    password  {password}"
        )


def _as(kind: Kind[T]) -> Callable[[str], T]:
    """Return a type for argparse that reads a value as a setting of this kind is read."""

    def parse(text: str) -> T:
        try:
            return kind.parse(text)
        except ValueError:
            raise ArgumentTypeError(f"must be {kind.allowed} (got {text!r})") from None

    return parse
