"""The host's settings, typed: one property each. Lives here: names, types, units. The values: `gumcp_site/settings.py`.

Tests override them with Django's `override_settings(GUMCP_…=…)`.
"""

from pathlib import Path
from typing import Literal, cast

from django.conf import settings

Rule = Literal[
    "requests of a key",
    "requests of an address",
    "calls of a key",
    "sessions of a key",
    "sessions of an address",
    "failed keys",
    "failed logins",
]
"""What is limited. Sessions are counted elsewhere (`authenticator`), since they end."""


class GatewaySettings:
    """Read access to the `GUMCP_*` settings. Every limit of the host is one of them."""

    @property
    def server_dirs(self) -> list[Path]:
        """Folders whose subfolders are MCP servers, in order of precedence."""
        return [Path(path) for path in cast("list[str | Path]", settings.GUMCP_SERVER_DIRS)]

    @property
    def host(self) -> str:
        """The address `manage.py serve` listens on."""
        return cast("str", settings.GUMCP_HOST)

    @property
    def port(self) -> int:
        """The port `manage.py serve` listens on."""
        return cast("int", settings.GUMCP_PORT)

    @property
    def api_key(self) -> str | None:
        """The key that `manage.py run_stdio` and `call` hand to the factory."""
        return cast("str | None", settings.GUMCP_API_KEY) or None

    @property
    def auth_mode(self) -> Literal["open", "keys"]:
        """open: any session key is accepted. keys: every MCP request needs a key that was issued here."""
        return cast('Literal["open", "keys"]', settings.GUMCP_AUTH)

    @property
    def allows_network_without_keys(self) -> bool:
        """Whether an operator wants the host open to everybody who can reach it."""
        return cast("bool", settings.GUMCP_ALLOW_NETWORK_WITHOUT_KEYS)

    @property
    def is_production(self) -> bool:
        """Whether the host is set up for a public https address."""
        return cast("str", settings.GUMCP_PUBLIC_URL).startswith("https://")

    @property
    def hides_keys(self) -> bool:
        """Whether servers' modules get None in place of a key that was issued here."""
        return cast("bool", settings.GUMCP_HIDE_KEYS_FROM_SERVERS)

    @property
    def trusted_proxies(self) -> list[str]:
        """Addresses, networks or "unix": reverse proxies whose forwarded headers are believed."""
        return cast("list[str]", settings.GUMCP_TRUSTED_PROXIES)

    @property
    def limits_storage_url(self) -> str:
        """Where limits are counted: memory://, or redis://… for several processes."""
        return cast("str", settings.GUMCP_LIMITS_STORAGE_URL)

    @property
    def rate_limits(self) -> dict[Rule, str]:
        """Rule -> such as 600/minute; empty for no limit. In force where keys are checked, logins always."""
        return {
            "requests of a key": settings.GUMCP_LIMIT_REQUESTS_PER_KEY,
            "requests of an address": settings.GUMCP_LIMIT_REQUESTS_PER_ADDRESS,
            "calls of a key": settings.GUMCP_LIMIT_CALLS_PER_KEY,
            "failed keys": settings.GUMCP_LIMIT_FAILED_KEYS,
            "failed logins": settings.GUMCP_LIMIT_FAILED_LOGINS,
        }

    @property
    def max_sessions_per_key(self) -> int:
        """How many sessions and listeners one key may have open in this process; 0 for no limit."""
        return settings.GUMCP_MAX_SESSIONS_PER_KEY

    @property
    def max_sessions_per_address(self) -> int:
        """How many sessions and listeners of keys one address may have open in this process; 0 for no limit."""
        return settings.GUMCP_MAX_SESSIONS_PER_ADDRESS

    @property
    def metrics_host(self) -> str:
        """The address of the Prometheus endpoint."""
        return cast("str", settings.GUMCP_METRICS_HOST)

    @property
    def metrics_port(self) -> int:
        """The port of the Prometheus endpoint; 0 turns it off."""
        return cast("int", settings.GUMCP_METRICS_PORT)

    @property
    def allowed_origins(self) -> list[str]:
        """Origins, besides the host's own, from which a browser may call MCP routes."""
        return cast("list[str]", settings.GUMCP_ALLOWED_ORIGINS)

    @property
    def load_timeout_seconds(self) -> float:
        """How long a server's module may take to load; 0 for no limit."""
        return cast("float", settings.GUMCP_LOAD_TIMEOUT_SECONDS)

    @property
    def factory_timeout_seconds(self) -> float:
        """How long a server's factory and lifespan may take before the connection is answered 503."""
        return cast("float", settings.GUMCP_FACTORY_TIMEOUT_SECONDS)

    @property
    def call_timeout_seconds(self) -> float:
        """How long a call may take before its client gets an error result; 0 for no limit. Per server in the admin."""
        return cast("float", settings.GUMCP_CALL_TIMEOUT_SECONDS)

    @property
    def max_concurrent_calls(self) -> int:
        """How many tool calls one server may run at once; 0 for no limit. Per server in the admin."""
        return cast("int", settings.GUMCP_MAX_CONCURRENT_CALLS)

    @property
    def max_concurrent_calls_per_user(self) -> int:
        """How many of them one user may have; 0 for no limit. Per server in the admin."""
        return cast("int", settings.GUMCP_MAX_CONCURRENT_CALLS_PER_USER)

    @property
    def max_threads(self) -> int:
        """How many threads run the handlers of one version 1 server: so many calls of it may be stuck."""
        return cast("int", settings.GUMCP_MAX_THREADS)

    @property
    def instance_idle_seconds(self) -> float:
        """How long an instance without a session is kept."""
        return cast("float", settings.GUMCP_INSTANCE_IDLE_SECONDS)

    @property
    def max_instances(self) -> int:
        """How many instances this process keeps at once; beyond it the longest idle one makes room.

        While all are in use, a new one is answered 503.
        """
        return cast("int", settings.GUMCP_MAX_INSTANCES)

    @property
    def max_sessions(self) -> int:
        """How many sessions and listeners this process has open at once; beyond it a new one is answered 503."""
        return cast("int", settings.GUMCP_MAX_SESSIONS)

    @property
    def session_idle_seconds(self) -> float:
        """How long a Streamable HTTP session without a request in flight is kept."""
        return cast("float", settings.GUMCP_SESSION_IDLE_SECONDS)

    @property
    def max_kept_events(self) -> int:
        """How many events of one session are kept for clients that resume a stream."""
        return cast("int", settings.GUMCP_MAX_KEPT_EVENTS)

    @property
    def max_kept_event_bytes(self) -> int:
        """How many bytes they may have; the newest is kept whatever its size."""
        return cast("int", settings.GUMCP_MAX_KEPT_EVENT_BYTES)

    @property
    def max_body_bytes(self) -> int:
        """The largest client message; beyond it 413."""
        return cast("int", settings.GUMCP_MAX_BODY_BYTES)

    @property
    def max_unfinished_bodies_bytes(self) -> int:
        """How much all messages hold that our Daphne is reading; beyond it 503 for the oldest large one."""
        return cast("int", settings.GUMCP_MAX_UNFINISHED_BODIES_BYTES)

    @property
    def max_session_backlog(self) -> int:
        """How many messages of one session may wait or run at once; beyond it 503."""
        return cast("int", settings.GUMCP_MAX_SESSION_BACKLOG)

    @property
    def ping_seconds(self) -> float:
        """How long a stream may be silent before it gets a comment."""
        return cast("float", settings.GUMCP_PING_SECONDS)

    @property
    def stream_buffer_bytes(self) -> int:
        """How much may wait for a slow reader of one stream before its server has to wait too."""
        return cast("int", settings.GUMCP_STREAM_BUFFER_BYTES)

    @property
    def slow_reader_seconds(self) -> float:
        """How long a stream's buffer may stay full before the stream is closed."""
        return cast("float", settings.GUMCP_SLOW_READER_SECONDS)

    @property
    def max_connections(self) -> int:
        """How many sockets our Daphne has open at once; beyond it 503."""
        return cast("int", settings.GUMCP_MAX_CONNECTIONS)

    @property
    def max_connections_per_address(self) -> int:
        """How many of them one client address may have. A proxy in front is one address: raise it there."""
        return cast("int", settings.GUMCP_MAX_CONNECTIONS_PER_ADDRESS)

    @property
    def shutdown_grace_seconds(self) -> float:
        """How long calls in flight may take after SIGTERM."""
        return cast("float", settings.GUMCP_SHUTDOWN_GRACE_SECONDS)

    @property
    def session_retention_days(self) -> float:
        """How long the rows of ended sessions are kept."""
        return cast("float", settings.GUMCP_SESSION_RETENTION_DAYS)


conf = GatewaySettings()
