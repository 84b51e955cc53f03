"""What our Daphne gets from the host: its limits, from the settings, and the functions that it calls."""

from gateway import metrics
from gateway.conf import conf
from gateway.host.host import UPKEEP_SECONDS, Host
from gateway.host.json_log import JsonAccessLog
from gateway.serving import ServingHooks, ServingLimits
from gateway.serving.access_log import AccessLog


def serving_limits() -> ServingLimits:
    """The limits of our Daphne, from the settings."""
    return ServingLimits(
        body_bytes=conf.max_body_bytes,
        unfinished_bodies_bytes=conf.max_unfinished_bodies_bytes,
        buffered_bytes=conf.stream_buffer_bytes,
        # A little longer than for streams: their own limit knows which server they belong to.
        slow_reader_seconds=conf.slow_reader_seconds + 2 * UPKEEP_SECONDS,
        connections=conf.max_connections,
        connections_per_address=conf.max_connections_per_address,
        shutdown_grace_seconds=conf.shutdown_grace_seconds,
    )


def serving_hooks(host: Host) -> ServingHooks:
    """The functions of `host` that our Daphne calls."""

    def count(event: str) -> None:
        metrics.connection_faults.labels(event).inc()
        if event == "body_too_large":
            # The one fault that the endpoints would have refused too, had the request reached them.
            metrics.refused_requests.labels(event).inc()

    def drain() -> None:
        host.drain.begin()
        host.recorder.note_drain()

    return ServingHooks(
        redact=host.redactor.path,
        make_access_log=JsonAccessLog if conf.log_format == "json" else AccessLog,
        on_event=count,
        on_start=host.ensure_started,
        on_drain=drain,
        on_stop=host.stop,
    )
