"""The port that Prometheus reads."""

import logging
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server

from gateway.conf import conf

logger = logging.getLogger(__name__)


class MetricsPort:
    """Serves the process's metrics in threads of its own. `start` and `stop` are called in turn, from any thread."""

    def __init__(self) -> None:
        self._server: WSGIServer | None = None

    def start(self) -> None:
        """Listen on the port of the settings. Logs an error if that is not possible."""
        if not conf.metrics_port:
            return
        try:
            self._server, _thread = start_http_server(conf.metrics_port, conf.metrics_host)
        except OSError as error:
            # Serving matters more: several processes of one machine share the default port.
            logger.error(
                "No metrics: cannot listen on %s:%s (%s). Set GUMCP_METRICS_PORT to a free port, or to 0.",
                conf.metrics_host,
                conf.metrics_port,
                error.strerror,
            )

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
