"""`manage.py serve`: Daphne with this host's settings. What `make run` calls."""

import os
import socket
import sys
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TypeVar

from django.core.checks import Tags
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from gateway.access.identity import current_identity
from gateway.access.redaction import redact
from gateway.apps import GatewayConfig
from gateway.conf import SettingsError, conf
from gateway.conf.kinds import Address, Count, Kind, Port
from gateway.http.addresses import is_loopback
from gateway.http.listening import require_keys_or_loopback
from gateway.management.error_display import AuthorHandler
from gateway.management.first_operator import make_first_operator
from gateway.management.inherited_socket import address_of, endpoint_of, take_inherited_socket
from gateway.management.next_steps import next_steps
from gateway.management.ports import require_free_port
from gateway.serving.service_manager import ServiceManager

if TYPE_CHECKING:
    from gateway.host.host import Host

T = TypeVar("T")


class Command(BaseCommand):
    """Checks the ports, prepares the database if asked to, serves, and says what to open next."""

    help = "Serve with Daphne."
    # What an operator may have set wrong. The other checks are of the code, and import the admin's pages.
    requires_system_checks = (Tags.security, Tags.files)

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
        service_manager = ServiceManager.take_from(os.environ)
        inherited = take_inherited_socket()
        if inherited is not None:
            host, port = address_of(inherited)
        try:
            require_keys_or_loopback([host])
        except SettingsError as error:
            raise CommandError(str(error)) from None
        if inherited is None:
            require_free_port(host, port, "GUMCP_PORT")
        if conf.metrics_port:
            if (conf.metrics_host, conf.metrics_port) == (host, port):
                raise CommandError(
                    f"GUMCP_PORT and GUMCP_METRICS_PORT are both {port}. Choose another for one of them."
                )
            require_free_port(conf.metrics_host, conf.metrics_port, "GUMCP_METRICS_PORT")
        if options["prepare"]:
            call_command("migrate", verbosity=0, interactive=False)
            make_first_operator(self.stdout.write)

        workers = options["workers"]
        # A machine among several has a supervisor, however few workers it has.
        if workers > 1 or conf.peer_address:
            from gateway.management.workers import BACKLOG, require_what_nodes_need, supervise

            require_what_nodes_need()
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = inherited or socket.create_server((host, port), family=family, backlog=BACKLOG)
            ready = partial(next_steps, host, port, None, workers)
            sys.exit(
                supervise(
                    listener,
                    workers,
                    watches_files=options["reload"],
                    on_ready=lambda: self.stdout.write(ready()),
                    service_manager=service_manager,
                )
            )

        # Imported here: it builds the host, which only a process that serves may do.
        from daphne.access import AccessLogGenerator
        from daphne.endpoints import build_endpoint_description_strings

        from gateway.host.serving import serving_hooks, serving_limits
        from gateway.serving.server import HttpServer
        from gumcp_site import asgi

        asgi.host.watches_files = options["reload"]
        hooks = serving_hooks(asgi.host)

        def start() -> None:
            asgi.host.ensure_started()
            service_manager.report_ready()
            service_manager.watch_loop()

        def drain() -> None:
            service_manager.report_stopping()
            hooks.on_drain()

        endpoints = build_endpoint_description_strings(host=host, port=port)
        if inherited is not None:
            endpoints = [endpoint_of(inherited.fileno(), inherited.family)]
        server = HttpServer(
            application=asgi.application,
            endpoints=endpoints,
            action_logger=AccessLogGenerator(sys.stdout),
            limits=serving_limits(),
            hooks=replace(hooks, on_start=start, on_drain=drain),
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

    def _serve_as_worker(self, descriptor: int, *, watches_files: bool) -> None:
        from gateway.management.workers import serve_as_worker

        def load() -> "tuple[Host, Callable[..., Any]]":
            from gumcp_site import asgi

            asgi.host.watches_files = watches_files
            return asgi.host, asgi.application

        def run(host: "Host", address: str, serve: Callable[[], None]) -> None:
            with self._logging_for_author(host, address):
                serve()

        serve_as_worker(descriptor, load, run)


def _as(kind: Kind[T]) -> Callable[[str], T]:
    """Return a type for argparse that reads a value as a setting of this kind is read."""

    def parse(text: str) -> T:
        try:
            return kind.parse(text)
        except ValueError:
            raise ArgumentTypeError(f"must be {kind.allowed} (got {text!r})") from None

    return parse
