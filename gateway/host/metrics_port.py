"""The port that Prometheus reads."""

import logging
from typing import Final

from django.conf import settings
from django.http.request import split_domain_port
from prometheus_client import REGISTRY, CollectorRegistry, make_asgi_app

from gateway.conf import conf
from gateway.http.addresses import parse_address
from gateway.http.asgi import Receive, Scope, Send
from gateway.http.origins import OriginPolicy
from gateway.http.requests import header
from gateway.http.responses import respond
from gateway.serving.small_server import SmallServer

logger = logging.getLogger(__name__)

PATHS: Final = frozenset({"/metrics", "/"})


class MetricsPort:
    """Serves metrics in a thread of its own. `start` and `stop` are called in turn, from any thread."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """`registry` has the metrics: those of this process, unless another one is given."""
        self._registry = registry
        self._server: SmallServer | None = None

    def start(self) -> None:
        """Listen on the port of the settings. Logs an error if that is not possible."""
        if not conf.metrics_port:
            return
        server = SmallServer(MetricsPage(settings.ALLOWED_HOSTS, self._registry), conf.metrics_host, conf.metrics_port)
        try:
            server.start()
        except OSError as error:
            # Serving matters more: several processes of one machine share the default port.
            logger.error(
                "No metrics: cannot listen on %s:%s (%s). Set GUMCP_METRICS_PORT to a free port, or to 0.",
                conf.metrics_host,
                conf.metrics_port,
                error.strerror,
            )
        else:
            self._server = server

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.stop()
            self._server = None


class MetricsPage:
    """The ASGI application of the port: the metrics, for whoever asks under a name of this host or by an address.

    DNS rebinding needs a name, so an address is always allowed: Prometheus mostly asks by one.
    """

    def __init__(self, allowed_hosts: list[str], registry: CollectorRegistry = REGISTRY) -> None:
        self._metrics = make_asgi_app(registry)
        self._policy = OriginPolicy(allowed_hosts, [])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        domain, _ = split_domain_port(header(scope, b"host") or "")
        if parse_address(domain) is None and await self._policy.refuse_foreign(scope, send):
            return
        if scope["path"] not in PATHS:
            await respond(send, 404, b'{"error": "The metrics are at /metrics."}', b"application/json")
            return
        # It reads these as UTF-8, which other headers need not be.
        chosen = [(name, value) for name, value in scope["headers"] if name in (b"accept", b"accept-encoding")]
        readable = [(name, value) for name, value in chosen if value.isascii()]
        await self._metrics({**scope, "headers": readable}, receive, send)
