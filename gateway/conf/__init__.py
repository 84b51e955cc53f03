"""The host's settings. Each is declared here, once: its variable, its kind, its default and what it does.

To add a setting, add one declaration to `GatewaySettings` and run `make settings`. The code reads it as
`conf.max_sessions`; the host reads `GUMCP_MAX_SESSIONS` from the environment or `.env`; tests change it with Django's
`override_settings(GUMCP_MAX_SESSIONS=…)`. `make settings` writes `.env.example` and the table in docs/settings.md from
the declarations, and a test fails while they differ.

Not here: the kinds of values (`kinds`), reading them and refusing wrong ones (`environment`), and Django's own settings
(`gumcp_site/settings.py`). This package imports no other of the project. Every other may import it.
"""

from pathlib import Path
from typing import Any, Literal

from django.conf import settings as django_settings

from gateway.conf.declarations import Computed, Section, Setting
from gateway.conf.environment import SettingsError, ending_with_settings_errors, read_settings
from gateway.conf.kinds import (
    Address,
    Choice,
    Count,
    DatabaseUrl,
    Duration,
    EmailUrl,
    Flag,
    Folder,
    Folders,
    HeaderNames,
    HostNames,
    Networks,
    Origins,
    PackageFlag,
    PeerAddress,
    Port,
    PublicUrl,
    Rate,
    RedisUrl,
    Size,
    StorageUrl,
    Text,
    split_url,
    url_host,
)

__all__ = [
    "AuthMode",
    "GatewaySettings",
    "Rule",
    "Section",
    "Setting",
    "SettingsError",
    "conf",
    "ending_with_settings_errors",
    "read_settings",
]

AuthMode = Literal["open", "keys"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]

Rule = Literal[
    "requests of a key",
    "requests of an address",
    "calls of a key",
    "sessions of a key",
    "sessions of an address",
    "sessions of the host",
    "failed keys",
    "failed logins",
]
"""What is limited. Sessions are counted elsewhere (`session_room`), since they end."""


class GatewaySettings:
    """Typed read access to the settings, in the order in which operators read about them."""

    def __init__(self, source: object = django_settings) -> None:
        """`source` has the values as attributes, by variable name."""
        self.source = source

    @classmethod
    def declared(cls) -> dict[str, Setting[Any]]:
        """Variable -> declaration, in order."""
        return {item.name: item for item in vars(cls).values() if isinstance(item, Setting)}

    _addresses = Section(
        "Where it listens", "For `make run` and `manage.py serve`; daphne and uvicorn take options of their own."
    )
    host = Setting(Address(), "127.0.0.1", "The address to listen on.")
    port = Setting(Port(), "8000", "The port to listen on.")
    workers = Setting(
        Count(at_least=1),
        "1",
        "Processes that serve as one host, under one supervisor. One worker needs no supervisor.",
    )
    peer_address = Setting(
        PeerAddress(),
        "",
        "With several machines: the address and port where the other ones reach this one, in a private network. In "
        "the ring this machine is called by this address and GUMCP_PORT, as the load balancer calls it. Needs "
        "PostgreSQL, and the same GUMCP_SECRET_KEY on all machines.",
        example="10.0.0.1:8100",
    )
    metrics_host = Setting(Address(), "127.0.0.1", "The address of the Prometheus endpoint.")
    metrics_port = Setting(
        Port(at_least=0),
        "9091",
        "The port of the Prometheus endpoint; 0 turns it off. It answers under addresses and the names of this host: "
        "other names go into GUMCP_ALLOWED_HOSTS.",
    )

    _names = Section("Its public address")
    public_url = Setting(
        PublicUrl(),
        "",
        "The address that clients use. An https address turns on keys, secure cookies, HSTS and the redirect to HTTPS, "
        "and allows the host's own name and origin. It may have a path, for a proxy that serves the host under one; no "
        "server may be called like the first part of that path.",
        example="https://mcp.example.com",
    )
    hsts_include_subdomains = Setting(
        Flag(),
        "false",
        "With an https public address: browsers use HTTPS for all names below the host's too, whoever serves them.",
    )
    hsts_preload = Setting(
        Flag(),
        "false",
        "With an https public address: asks browsers to know by heart that the host is HTTPS only, which takes months "
        "to undo.",
    )
    allowed_hosts = Setting(HostNames(), "", "More names that this host answers to.", example="mcp.internal")
    allowed_origins = Setting(
        Origins(),
        "",
        "More web pages that may call this host and read its answers, by origin.",
        example="https://app.example.com,http://localhost:5173",
    )
    allowed_headers = Setting(
        HeaderNames(),
        "",
        "More request headers that these pages may send. Those of the protocol are always allowed; * allows any.",
        example="X-Api-Key,X-Request-Id",
    )
    trusted_proxies = Setting(
        Networks(),
        Computed(
            "127.0.0.1,::1 with an https public address, else none",
            lambda settings: ["127.0.0.1", "::1"] if settings.is_production else [],
        ),
        "Reverse proxies whose X-Forwarded-* headers are believed. Empty: none.",
        example="127.0.0.1,::1",
    )

    _callers = Section("Who may call", "docs/access.md has more.")
    auth_mode = Setting[AuthMode](
        Choice[AuthMode](("open", "keys")),
        Computed(
            "keys with an https public address, else open",
            lambda settings: "keys" if settings.is_production else "open",
        ),
        "open: any session key is accepted. keys: every MCP request needs a key made with `manage.py create_key`.",
        name="GUMCP_AUTH",
        example="keys",
    )
    allows_network_without_keys = Setting(
        Flag(),
        "false",
        "Lets a host without keys listen on a network: anybody who reaches it can use every server as any user.",
        name="GUMCP_ALLOW_NETWORK_WITHOUT_KEYS",
    )
    hides_keys = Setting(
        Flag(),
        "false",
        "Gives servers' code None in place of a key that was made here.",
        name="GUMCP_HIDE_KEYS_FROM_SERVERS",
    )

    _first_operator = Section(
        "The first login to the admin",
        "`manage.py serve --prepare` and `make run` make it while there is no superuser. docs/backup.md has more.",
    )
    admin_user = Setting(Text(), "operator", "Its name.", example="ada")
    admin_password_file = Setting(
        Text(),
        "",
        "A file with its password, which is then neither made up nor printed. Not read once there is a superuser.",
        example="/run/secrets/gumcp_admin_password",
    )

    _caller_limits = Section("Limits of callers", "In force where keys are checked; logins always.")
    limit_requests_per_key = Setting(Rate(), "1200/minute", "Requests of one key.")
    limit_requests_per_address = Setting(Rate(), "6000/minute", "Requests of one client address.")
    limit_calls_per_key = Setting(Rate(), "600/minute", "Tool calls of one key.")
    limit_failed_keys = Setting(Rate(), "30/minute", "Refused keys of one client address.")
    limit_failed_logins = Setting(
        Rate(),
        "10 per 5 minutes",
        "Failed logins to the admin of one address. Of one name, from addresses where it has not logged in before: ten "
        "times as many.",
    )
    max_sessions_per_key = Setting(
        Count(is_limit=True),
        "100",
        "Sessions and listeners that one key may have open in this process. "
        "Beyond it the longest idle session makes room; while all are in use, a new one is answered 429.",
    )
    max_sessions_per_address = Setting(
        Count(is_limit=True),
        "1000",
        "Sessions and listeners that one client address may have open in this process, in both modes. "
        "Beyond it the longest idle session makes room; while all are in use, a new one is answered 429.",
    )
    limits_storage_url = Setting(
        StorageUrl(),
        Computed(
            "GUMCP_REDIS_URL; else a file for several workers, and memory:// for one process",
            lambda settings: settings.redis_url or "memory://",
        ),
        "Where requests are counted. The processes of one machine can count together in a file, those of several "
        "machines in Redis.",
        is_secret=True,
        example="redis://127.0.0.1:6379/0",
    )

    _files = Section("Files and the database", "Relative paths start at the project's root.")
    server_dirs = Setting(
        Folders(), "servers", "Folders whose subfolders are servers. The first folder that has a name wins."
    )
    data_dir = Setting(Folder(), "var", "Where the embedded database and the generated secret key are kept.")
    database = Setting(
        DatabaseUrl(),
        "",
        "Another database than the embedded SQLite in GUMCP_DATA_DIR.",
        name="DATABASE_URL",
        is_secret=True,
        example="postgres://user:password@127.0.0.1:5432/gumcp",
    )
    redis_url = Setting(
        RedisUrl(),
        "",
        "A Redis that several processes share: limits are counted in it, operators' commands travel through it, and "
        "events are kept in it for clients that resume a stream. Nothing depends on it: while it is away, each process "
        "counts alone, commands arrive by the database, and streams are resumed by their own process only.",
        is_secret=True,
        example="redis://127.0.0.1:6379/0",
    )
    secret_key = Setting(
        Text(),
        "",
        "Django's secret key. Empty: a random key is made once and kept in GUMCP_DATA_DIR.",
        is_secret=True,
    )
    log_level = Setting(
        Choice[LogLevel](("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), is_case_sensitive=False),
        "INFO",
        "How much is logged.",
    )
    log_format = Setting(
        Choice[LogFormat](("text", "json")),
        "text",
        "json: each log line and each access line is a JSON object. ASGI servers that are not started by "
        "`manage.py serve` write access lines of their own.",
    )
    tracing = Setting(
        PackageFlag(("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"), "'gumcp[tracing]'"),
        "false",
        "Sends OpenTelemetry traces to a collector over OTLP/HTTP. Where to, and how many, say OpenTelemetry's own "
        "variables: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME. docs/tracing.md has more.",
    )
    max_traces_per_second = Setting(
        Count(at_least=1),
        "100",
        "Requests that one process traces in a second, whatever clients ask for. Others are served without a trace.",
    )
    debug = Setting(Flag(), "false", "Shows error pages with their cause. Never on a public host.")

    _loading = Section("Servers, instances and sessions")
    load_timeout_seconds = Setting(Duration(has_limit=False), "60s", "How long a server's module may take to load.")
    factory_timeout_seconds = Setting(
        Duration(at_least=0.1),
        "30s",
        "How long a server's factory and lifespan may take before the connection is answered 503.",
    )
    child_start_timeout_seconds = Setting(
        Duration(at_least=0.1),
        "2m",
        "How long a command or remote server may take to answer its handshake. A first `npx` downloads its package.",
    )
    isolates_folders = Setting(
        Flag(),
        "false",
        "Runs every Python folder in processes of its own, one for each user. Per server in its server.json.",
        name="GUMCP_ISOLATE_FOLDERS",
    )
    servers_file = Setting(
        Text(),
        "",
        "A JSON file with an `mcpServers` object, whose entries are served beside the folders.",
        example="/etc/gumcp/mcp.json",
    )
    max_children = Setting(
        Count(at_least=1),
        "200",
        "Child processes and remote connections of servers at once; beyond it 503. The last quarter is for users who "
        "have less than a quarter.",
    )
    instance_idle_seconds = Setting(Duration(), "30m", "How long an instance without a session is kept.")
    max_instances = Setting(
        Count(at_least=1),
        "10000",
        "Instances in this process. Beyond it an idle one is dropped: the longest idle one of the user who has most of "
        "them, or of the address where keys are not checked. While all are in use, a new one is answered 503.",
    )
    session_idle_seconds = Setting(
        Duration(at_least=0.1), "30m", "How long a Streamable HTTP session without a request in flight is kept."
    )
    restores_sessions = Setting(
        Flag(),
        "true",
        "Keeps what a session needs to go on after a restart, a deploy or a crash in the database. "
        "If off, clients get 404 then and have to connect again.",
        name="GUMCP_RESTORE_SESSIONS",
    )
    max_sessions = Setting(
        Count(at_least=1),
        "10000",
        "Sessions and listeners in this process. "
        "Beyond it the longest idle session makes room; while all are in use, a new one is answered 503.",
    )
    max_session_backlog = Setting(
        Count(at_least=1), "1000", "Messages of one session that may wait or run at once; beyond it 503."
    )
    max_kept_events = Setting(
        Count(at_least=1), "256", "Events of one session that are kept for clients that resume a stream."
    )
    max_kept_event_bytes = Setting(Size(), "256KiB", "How large these events may be together.")
    session_retention_days = Setting(
        Duration(unit="d"), "7d", "How long the rows of ended sessions and instances are kept; 0 keeps none."
    )
    max_session_rows_per_user = Setting(
        Count(is_limit=True),
        "1000",
        "Rows of ended sessions, and of ended instances, that are kept for one user; the oldest are deleted.",
    )
    max_session_rows = Setting(
        Count(is_limit=True), "100000", "How many of them are kept in all; the oldest are deleted."
    )
    records_calls = Setting(
        Flag(),
        "true",
        "Keeps a row of every tool call and refusal for the admin: who, what, when, how it ended. Never what was said.",
        name="GUMCP_RECORD_CALLS",
    )
    call_retention_days = Setting(Duration(unit="d"), "7d", "How long these rows are kept.")
    max_call_rows = Setting(Count(at_least=1000), "200000", "How many of them are kept; the oldest are deleted.")

    max_playground_sessions = Setting(
        Count(at_least=1), "50", "Playground sessions that all operators together may have open in this process."
    )
    max_playground_sessions_per_operator = Setting(
        Count(at_least=1), "5", "Playground sessions that one operator may have open in this process."
    )
    playground_idle_seconds = Setting(
        Duration(at_least=0.1), "15m", "How long a playground session without a message is kept."
    )

    _calls = Section(
        "Calls",
        "The admin can set each for one server, except GUMCP_MAX_COMPUTING_THREADS; a server's manifest can set its "
        "call timeout. Numbers count in each process.",
    )
    call_timeout_seconds = Setting(
        Duration(has_limit=False),
        "60s",
        "How long a call may take before its client gets an error result. Progress renews it, and waiting for the user "
        "does not count.",
    )
    max_call_seconds = Setting(
        Duration(has_limit=False), "1h", "How long a call may take that reports progress or waits for the user."
    )
    max_concurrent_calls = Setting(Count(is_limit=True), "0", "Tool calls that one server may run at once.")
    max_concurrent_calls_per_user = Setting(Count(is_limit=True), "0", "How many of them one user may have.")
    max_threads = Setting(
        Count(at_least=1), "32", "Threads for the handlers of one version 1 server: so many calls of it may be stuck."
    )
    max_computing_threads = Setting(
        Count(at_least=1),
        "2",
        "How many of these threads may compute at once, for each server. Further calls wait, because threads that "
        "compute slow down all servers. Threads that wait for the network do not count.",
    )
    when_blocked = Setting(
        Choice[Literal["spill", "wait"]](("spill", "wait")),
        "spill",
        "What calls of a version 1 server do while another one blocks its event loop. spill: they run beside it, in "
        "threads. wait: they wait for it.",
    )

    _connections = Section("Connections")
    max_body_bytes = Setting(Size(), "4MiB", "The largest message of a client; beyond it 413.")
    max_message_values = Setting(
        Count(at_least=100),
        "100000",
        "JSON values in one message (objects, arrays, texts, numbers …), however short they are; beyond it 413. Of "
        "what a command or remote server sends as well; beyond it the call ends with an error.",
    )
    max_batch_messages = Setting(
        Count(at_least=1), "100", "Messages in one batch, which clients of 2025-03-26 may send; beyond it 413."
    )
    max_initialize_bytes = Setting(
        Size(), "64KiB", "The largest `initialize` message, which is kept as long as its session; beyond it 413."
    )
    max_initialize_values = Setting(Count(at_least=100), "2000", "JSON values in it; beyond it 413.")
    max_unanswered_bytes = Setting(
        Size(),
        "256MiB",
        "Memory that all messages hold until they are answered, with what decoding makes of them, and large answers "
        "until their clients have read them. Beyond it a message is answered 503, and an error is sent in place of an "
        "answer. What nothing else is held beside passes, whatever its size.",
    )
    max_unanswered_bytes_per_address = Setting(
        Size(), "128MiB", "Those of one client address; a message beyond it gets 429."
    )
    max_unanswered_bytes_per_key = Setting(Size(), "64MiB", "Those of one key; a message beyond it gets 429.")
    max_unfinished_bodies_bytes = Setting(
        Size(),
        "256MiB",
        "All bodies together that are being read (Daphne). Beyond it the oldest large one is answered 503, first of an "
        "address that holds more than a quarter.",
    )
    ping_seconds = Setting(
        Duration(at_least=0.1),
        "15s",
        "How long an event stream may be silent before the host sends a comment, which keeps the connection open "
        "(checked once a second; not the MCP `ping`). A POST that is not answered by then becomes a stream.",
    )
    stream_buffer_bytes = Setting(
        Size(), "1MiB", "How much may wait for a slow reader of one stream before its server has to wait too."
    )
    slow_reader_seconds = Setting(
        Duration(at_least=0.1), "30s", "How long a stream's buffer may stay full before the stream is closed."
    )
    max_connections = Setting(Count(at_least=1), "20000", "Open sockets (other servers: open requests); beyond it 503.")
    max_connections_per_address = Setting(
        Count(at_least=1),
        "10000",
        "Open sockets of one client address (other servers: open requests). On Daphne a proxy in front is one address.",
    )
    max_consoles = Setting(
        Count(at_least=1), "50", "Browsers that may watch the overview of the admin at once; beyond it 503."
    )
    shutdown_grace_seconds = Setting(Duration(), "20s", "How long calls in flight may take after SIGTERM.")

    _alerts = Section("Alerts", "Where they are sent is set in the admin. docs/monitoring.md has more.")
    email_url = Setting(
        EmailUrl(),
        "",
        "The mail server for alerts. Empty: no e-mail is sent.",
        is_secret=True,
        example="smtp+tls://user:password@mail.example.com:587",
    )
    email_from = Setting(Text(), "gumcp@localhost", "The sender of these e-mails.", example="guMCP <gumcp@example.com>")
    alert_after_seconds = Setting(
        Duration(), "10s", "How long a server must be failed or blocked, or the host degraded, before an alert begins."
    )
    alert_calm_seconds = Setting(Duration(), "1m", "How long all must be well before the alert ends.")
    alert_refusals_per_minute = Setting(
        Count(is_limit=True), "300", "Refused requests in a minute, of all processes together, that are an alert."
    )
    alert_key_days = Setting(Duration(unit="d"), "7d", "How long before a key expires the alert begins; 0: no alert.")
    max_alerts_per_hour = Setting(
        Count(at_least=1),
        "20",
        "Messages to one destination. Beyond it alerts wait, and are sent together in one message.",
    )
    alert_send_seconds = Setting(Duration(at_least=0.1), "10s", "How long one attempt to send a message may take.")
    alert_retry_seconds = Setting(
        Duration(), "6h", "How long a message that could not be sent is tried again, less and less often."
    )
    alert_retention_days = Setting(Duration(unit="d"), "30d", "How long rows of past alerts and messages are kept.")
    alerts_allow_private_addresses = Setting(
        Flag(),
        "false",
        "Lets webhooks lead to this machine and to private networks. Link-local addresses are refused always.",
    )

    _commands = Section("Commands")
    api_key_text = Setting(
        Text(),
        "",
        "The key that `manage.py call`, `inspect` and `run_stdio` hand to the server's factory.",
        name="GUMCP_API_KEY",
        is_secret=True,
    )

    # What follows from these.

    @property
    def server_places(self) -> list[Path]:
        """Where servers are found: the server directories, and the `mcpServers` file, whose entries are its folders."""
        return [*self.server_dirs, *([Path(self.servers_file)] if self.servers_file else [])]

    @property
    def is_production(self) -> bool:
        """Whether the host is set up for a public https address."""
        return self.public_url.startswith("https://")

    @property
    def public_path(self) -> str:
        """The path under which a proxy serves the host, without a slash at its end; empty if it is the root."""
        return split_url(self.public_url).path.rstrip("/") if self.public_url else ""

    @property
    def base_url(self) -> str:
        """The address to show to people, without a slash at its end: the public one if there is one."""
        if self.public_url:
            return self.public_url.rstrip("/")
        return f"http://{url_host(self.host)}:{self.port}"

    @property
    def api_key(self) -> str | None:
        """The key that commands hand to the factory; None if there is none."""
        return self.api_key_text or None

    @property
    def rate_limits(self) -> dict[Rule, str]:
        """Rule -> such as 600/minute; empty for no limit. In force where keys are checked, logins always."""
        return {
            "requests of a key": self.limit_requests_per_key,
            "requests of an address": self.limit_requests_per_address,
            "calls of a key": self.limit_calls_per_key,
            "failed keys": self.limit_failed_keys,
            "failed logins": self.limit_failed_logins,
        }


conf = GatewaySettings()
