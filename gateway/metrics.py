"""All Prometheus metrics of the host, and the signal receivers that count into them. Metrics of Django's pages:
`http.page_metrics`.

Label values come from the servers that were found and from fixed lists, never from a request: clients must not be able
to add time series.
"""

from collections import Counter as Counts
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, Protocol

from mcp_types.version import KNOWN_PROTOCOL_VERSIONS
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway import signals

REFUSAL_REASONS: Final = (
    "authentication_unavailable",
    "bad_host",
    "bad_origin",
    "bad_session_key",
    "body_timeout",
    "body_too_large",
    "duplicate_request_id",
    "instance_limit",
    "instance_unavailable",
    "invalid_message",
    "message_budget",
    "message_too_large",
    "method_not_allowed",
    "missing_session_id",
    "not_acceptable",
    "not_open_to_network",
    "not_permitted",
    "out_of_scope",
    "rate_limit",
    "server_disabled",
    "session_backlog",
    "session_limit",
    "sessions_unavailable",
    "stream_conflict",
    "too_many_connections",
    "unauthenticated",
    "unknown_event",
    "unknown_key",
    "unknown_server",
    "unknown_session",
    "unsupported_media_type",
    "wasteful_body",
)
"""The values of the label `reason` of `gumcp_refused_requests_total`."""

OTHER_TOOL: Final = "(other)"
"""The label of a tool that was called and is not in its server's listing."""

# When each series began. Prometheus does not ask for it in this format, and it makes a third of all series.
disable_created_metrics()  # type: ignore[no-untyped-call]

build_info = Gauge(
    "gumcp_build_info",
    "Versions of the host and of what it runs on; always 1",
    ["version", "python", "mcp_sdk", "asgi_server"],
)
active_connections = Gauge("gumcp_active_connections", "Open event streams", ["server"])
connections = Counter("gumcp_connection_total", "Event streams opened", ["server"])
sessions_opened = Counter("gumcp_sessions_opened_total", "MCP sessions opened", ["server", "transport"])
sessions_restored = Counter(
    "gumcp_sessions_restored_total",
    "MCP sessions that went on after a restart, a crash or a move, or on a new stream without initialize",
    ["server", "transport"],
)
stateless_requests = Counter(
    "gumcp_stateless_requests_total", "Requests of the stateless protocol", ["server", "protocol_version"]
)
messages = Counter("gumcp_messages_total", "JSON-RPC messages", ["server", "direction"])
tool_calls = Counter("gumcp_tool_calls_total", "Tool calls, by how they ended", ["server", "tool", "outcome"])
tool_call_seconds = Histogram(
    "gumcp_tool_call_seconds",
    "Time from a tool call's arrival to its answer, by how it ended",
    ["server", "tool", "outcome"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
refused_requests = Counter("gumcp_refused_requests_total", "Requests refused by the host", ["reason"])
connection_faults = Counter("gumcp_connection_faults_total", "Connections that our Daphne refused or cut", ["reason"])
request_failures = Counter(
    "gumcp_request_failures_total", "Requests ended by an error in the host, by how far the response was", ["when"]
)
load_failures = Gauge("gumcp_load_failures_servers", "Server folders that failed to load")
lane_blocks = Counter("gumcp_lane_blocks_total", "Times a server's event loop was blocked", ["server", "tool"])
relayed_requests = Counter(
    "gumcp_relayed_requests_total", "Requests passed on to the process that owns their caller, by where it is", ["to"]
)
given_connections = Counter(
    "gumcp_given_connections_total", "Connections given to the worker of this machine that owns their caller"
)
alert_deliveries = Counter(
    "gumcp_alert_deliveries_total", "Attempts to send a message about alerts, by how they ended", ["kind", "outcome"]
)
withheld_messages = Counter(
    "gumcp_withheld_messages_total",
    "Messages of servers that were not sent, because too much waits for the client",
    ["server"],
)
slow_readers = Counter("gumcp_slow_readers_total", "Streams closed because their client did not read", ["server"])

# Prometheus sees an increase between two values only. These begin at zero, so that alerts see the first event too.
for _reason in REFUSAL_REASONS:
    refused_requests.labels(_reason)
for _moment in ("before_start", "after_start", "after_end"):
    request_failures.labels(_moment)
for _kind in ("webhook", "email"):
    for _outcome in ("sent", "failed", "given_up"):
        alert_deliveries.labels(_kind, _outcome)


class ToolCallMetrics:
    """Counts the tool calls of one server. Used in its lane.

    Looking up a metric by its labels costs more than counting, so it is done once for each tool and outcome.
    """

    def __init__(self, server_name: str) -> None:
        self._server_name = server_name
        self._counters: dict[tuple[str, str], Counter] = {}
        self._histograms: dict[tuple[str, str], Histogram] = {}

    def count(self, tool: str, outcome: str) -> None:
        """Count a call."""
        counter = self._counters.get((tool, outcome))
        if counter is None:
            counter = self._counters[tool, outcome] = tool_calls.labels(self._server_name, tool, outcome)
        counter.inc()

    def observe(self, tool: str, outcome: str, seconds: float) -> None:
        """Note how long a call took."""
        histogram = self._histograms.get((tool, outcome))
        if histogram is None:
            histogram = tool_call_seconds.labels(self._server_name, tool, outcome)
            self._histograms[tool, outcome] = histogram
        histogram.observe(seconds)


class _OpenedSession(Protocol):
    """The fields of an opened session that metrics use. `Session` itself is in a layer above this module."""

    @property
    def server_name(self) -> str: ...
    @property
    def transport(self) -> str: ...


class _Lane(Protocol):
    """The fields of a lane that metrics use. A lane is the thread and event loop of one server."""

    @property
    def name(self) -> str: ...
    @property
    def lag_seconds(self) -> float: ...


class _Calls(Protocol):
    """The fields of a server's calls that metrics use."""

    @property
    def server_name(self) -> str: ...
    @property
    def stuck(self) -> int: ...


class _Instances(Protocol):
    """The fields of the instances that metrics use."""

    def count_by_server(self) -> Mapping[str, int]: ...
    @property
    def calls(self) -> Iterable[_Calls]: ...


class _Session(_OpenedSession, Protocol):
    """The fields of an open session that metrics use."""

    @property
    def protocol_version(self) -> str: ...


class HostCollector(Collector):
    """Metrics that are read from the running host when Prometheus asks for them.

    Threads: `collect` runs in a thread of the metrics port. Everything that it reads may be read in any thread.
    """

    def __init__(self, lanes: Iterable[_Lane], instances: _Instances, sessions: Iterable[_Session]) -> None:
        self._lanes = lanes
        self._instances = instances
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        """Yield lane lag, instances, sessions and stuck calls by server."""
        lag = GaugeMetricFamily("gumcp_lane_lag_seconds", "How late each server's event loop is", labels=["server"])
        for lane in self._lanes:
            lag.add_metric([lane.name], lane.lag_seconds)
        yield lag
        instances = GaugeMetricFamily("gumcp_instances", "Server instances kept in memory", labels=["server"])
        for server_name, count in self._instances.count_by_server().items():
            instances.add_metric([server_name], count)
        yield instances
        sessions = GaugeMetricFamily(
            "gumcp_sessions", "Open MCP sessions", labels=["server", "transport", "protocol_version"]
        )
        open_sessions = Counts(
            (session.server_name, session.transport, version_label(session.protocol_version))
            for session in self._sessions
        )
        for labels, count in open_sessions.items():
            sessions.add_metric(labels, count)
        yield sessions
        stuck = GaugeMetricFamily(
            "gumcp_stuck_calls", "Calls that were given up and have not returned", labels=["server"]
        )
        for calls in self._instances.calls:
            stuck.add_metric([calls.server_name], calls.stuck)
        yield stuck

    def register(self) -> None:
        """Add this collector to the process's default registry."""
        REGISTRY.register(self)

    def unregister(self) -> None:
        """Remove this collector from the registry."""
        REGISTRY.unregister(self)


def version_label(protocol_version: str) -> str:
    """A known protocol version, or "unknown": clients can propose any text."""
    return protocol_version if protocol_version in KNOWN_PROTOCOL_VERSIONS else "unknown"


@lru_cache(maxsize=1000)
def message_counter(server_name: str, direction: str) -> Counter:
    """The counter of a server's messages. It is kept, because to find it costs more than to count."""
    return messages.labels(server_name, direction)


def note_stateless_request(server_name: str, protocol_version: str) -> None:
    """Count a request of the stateless protocol."""
    _stateless_requests(server_name, version_label(protocol_version)).inc()


@lru_cache(maxsize=1000)
def _stateless_requests(server_name: str, version: str) -> Counter:
    return stateless_requests.labels(server_name, version)


def connect() -> None:
    """Connect the receivers to their signals. A second call changes nothing."""
    signals.session_opened.connect(_on_session_opened)
    signals.stream_opened.connect(_on_stream_opened)
    signals.stream_closed.connect(_on_stream_closed)
    signals.request_refused.connect(_on_request_refused)


def _on_session_opened(session: "_OpenedSession", **_: Any) -> None:
    sessions_opened.labels(session.server_name, session.transport).inc()


def _on_stream_opened(server_name: str, **_: Any) -> None:
    active_connections.labels(server_name).inc()
    connections.labels(server_name).inc()


def _on_stream_closed(server_name: str, **_: Any) -> None:
    active_connections.labels(server_name).dec()


def _on_request_refused(reason: str, **_: Any) -> None:
    refused_requests.labels(reason).inc()
