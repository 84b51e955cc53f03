"""The rows that operators see. They mirror what is in memory.

Requests to servers read none of them, with one exception: `RestorableSession`, when a session is not in this process.

`recorder` writes them in batches. They never contain a key or a session id.
"""

import uuid
from datetime import datetime
from typing import ClassVar, Final

from django.core.validators import MinValueValidator
from django.db import models

STATELESS: Final = "stateless"
"""What stands for the transport of a client that has no session."""

FLUSH_SECONDS: Final = 0.5
"""How often rows are brought up to date. Operators see events within two seconds."""

HEARTBEAT_SECONDS: Final = 3.0
"""How often a process writes that it is alive."""

DEAD_AFTER_SECONDS: Final = 10.0
"""A process that has written nothing for so long counts as dead."""


class HostProcess(models.Model):
    """A process that serves, or has served."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    hostname = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    started_at = models.DateTimeField()
    last_seen_at = models.DateTimeField(db_index=True)
    version = models.CharField(max_length=50, blank=True)
    node = models.CharField(
        max_length=255, blank=True, help_text="Its machine in the ring; empty if there is only one."
    )
    slot: "models.PositiveIntegerField[int | None, int | None]" = models.PositiveIntegerField(
        null=True, blank=True, help_text="Its number among the workers of its supervisor."
    )
    peer_address = models.CharField(max_length=255, blank=True, help_text="Where other nodes reach its node.")
    is_draining = models.BooleanField(default=False, help_text="It was told to stop, and finishes what it has begun.")
    load = models.FloatField(default=0.0, help_text="Processor time in the last seconds; 1 is one core.")
    conditions = models.JSONField(default=dict, blank=True, help_text="What is wrong with which server in it now.")
    look_requested_at: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="When somebody asked it to look for new server folders."
    )
    looked_at: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="The request that it has carried out last."
    )
    # What it does, as of `last_seen_at`: for the overview of the other processes.
    open_sessions = models.PositiveIntegerField(default=0, editable=False)
    calls_per_second = models.FloatField(default=0.0, editable=False)
    p95_ms: "models.FloatField[float | None, float | None]" = models.FloatField(null=True, editable=False)
    memory_bytes = models.PositiveBigIntegerField(default=0, editable=False)

    class Meta:
        default_permissions = ("view",)
        permissions = [("view_overview", "Can see the overview")]
        verbose_name_plural = "host processes"
        ordering = ["-last_seen_at"]

    def __str__(self) -> str:
        return f"{self.hostname}:{self.pid}"


class ServerRecord(models.Model):
    """A server: its name, whether it loaded, what it offers, and how operators want it to run."""

    class Status(models.TextChoices):
        """Whether the server is being served."""

        LOADED = "loaded", "Loaded"
        FAILED = "failed", "Failed"
        NEAR_MISS = "near miss", "Not a server"
        REMOVED = "removed", "Removed"

    name = models.CharField(max_length=255)
    folder = models.CharField(max_length=1024)
    hostname = models.CharField(max_length=255, blank=True, help_text="The machine that found it last.")
    status = models.CharField(max_length=10, choices=Status.choices)
    reason = models.TextField(blank=True, help_text="Why the server cannot be served.")
    traceback = models.TextField(blank=True)
    version = models.CharField(max_length=255, blank=True, help_text="Known after its first user.")
    tools = models.JSONField(default=list, blank=True, help_text="Known after its first user.")
    resources = models.JSONField(default=list, blank=True)
    prompts = models.JSONField(default=list, blank=True)
    tool_definitions = models.TextField(
        blank=True, editable=False, help_text="The tools in wire form, as far as they are short enough, as ASCII JSON."
    )
    load_seconds = models.FloatField(default=0.0)
    loaded_at = models.DateTimeField()
    condition = models.CharField(max_length=500, blank=True, help_text="What is wrong with the server now.")
    is_enabled = models.BooleanField(
        "enabled", default=True, help_text="If off, clients get 503 and sessions are closed."
    )
    call_timeout_seconds = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text=(
            "Each progress notification renews this limit. Waiting for the user does not count. 0: no limit. "
            "Empty: the setting's value."
        ),
    )
    max_call_seconds = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0)],
        help_text=(
            "The limit in all for calls that report progress or wait for the user. 0: no such limit. Empty: the "
            "setting's value."
        ),
    )
    max_concurrent_calls = models.PositiveIntegerField(
        null=True, blank=True, help_text="Tool calls that may run at once. 0: no limit. Empty: the setting's value."
    )
    max_concurrent_calls_per_user = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Tool calls of one user that may run at once. 0: no limit. Empty: the setting's value.",
    )
    max_threads = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Threads for the handlers of a version 1 server. Empty: the setting's value.",
    )
    when_blocked = models.CharField(
        max_length=10,
        blank=True,
        choices=[("spill", "Run beside it, in threads"), ("wait", "Wait for it")],
        help_text=(
            "For version 1 servers: what calls do while another call blocks the event loop. Empty: the setting's value."
        ),
    )
    isolation = models.CharField(
        "process",
        max_length=10,
        blank=True,
        choices=[("process", "One of its own for each user"), ("none", "The host's")],
        help_text="Where the code of a Python folder runs. Empty: as its server.json says, or the setting.",
    )
    reload_requested_at: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(
        null=True, blank=True, editable=False
    )

    class Meta:
        verbose_name = "server"
        default_permissions = ("view", "change")
        permissions = [("view_server_log", "Can see the log lines of servers")]
        constraints = [models.UniqueConstraint(fields=["folder"], name="one_row_per_folder")]
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class SessionRecord(models.Model):
    """One client of a server: an MCP session, open or ended, or the stateless requests of one user to one server.

    A client of the stateless protocol has no session. Its row lasts as long as its instance, whose primary key it has,
    and says which client sent the last request.
    """

    class State(models.TextChoices):
        """Whether the client is connected."""

        OPEN = "open", "Open"
        CLOSED = "closed", "Closed"
        LOST = "lost", "Lost (its process died)"
        STATELESS = "stateless", "Stateless"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    process = models.ForeignKey(HostProcess, on_delete=models.CASCADE, related_name="sessions")
    server_name = models.CharField("server", max_length=255, db_index=True)
    user_id = models.CharField(max_length=255, db_index=True)
    key = models.CharField(max_length=32, blank=True, help_text="The public part of the key.")
    transport = models.CharField(max_length=20)
    client_name = models.CharField(max_length=200, blank=True)
    client_version = models.CharField(max_length=200, blank=True)
    protocol_version = models.CharField(max_length=200, blank=True)
    address = models.CharField(max_length=200, blank=True)
    opened_at = models.DateTimeField(db_index=True)
    last_activity_at = models.DateTimeField()
    closed_at: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(null=True, blank=True)
    messages_in = models.PositiveBigIntegerField(default=0)
    messages_out = models.PositiveBigIntegerField(default=0)
    calls = models.PositiveBigIntegerField("tool calls", default=0)
    state = models.CharField(max_length=10, choices=State.choices, db_index=True)
    end_reason = models.CharField(max_length=200, blank=True)
    is_end_requested = models.BooleanField(default=False, help_text="An operator asked to end the session.")

    CONNECTED: ClassVar = (State.OPEN, State.STATELESS)
    """The states of clients that may send a request at any moment."""

    class Meta:
        verbose_name = "client"
        default_permissions = ("view",)
        permissions = [("end_session", "Can end a session")]
        # Each process looks twice a second for sessions that it is to end. It may have ten thousand that are open.
        indexes = [
            models.Index(fields=["process", "state"], name="sessions_to_end", condition=models.Q(is_end_requested=True))
        ]
        ordering = ["-opened_at"]

    def __str__(self) -> str:
        return f"{self.server_name} · {self.user_id} · {self.opened_at:%Y-%m-%d %H:%M:%S}"


class RestorableSession(models.Model):
    """What a process needs to go on with a session of another one. It has the primary key of the session's other row.

    Digests stand for the session's id and its caller. `restorable_rows` reads and writes it; operators do not see it.
    """

    id = models.UUIDField(primary_key=True)
    id_digest = models.CharField(max_length=64, unique=True)
    caller_digest = models.CharField(max_length=64, db_index=True)
    transport = models.CharField(max_length=20)
    holder = models.UUIDField()
    """The process that has the session. No foreign key: this row may be written before that of the process."""
    epoch = models.PositiveIntegerField(default=1)
    """Goes up each time that a process takes the session over."""
    taken_at: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(null=True, db_index=True)
    initialize = models.TextField()
    protocol_version = models.CharField(max_length=200)
    is_initialized = models.BooleanField(default=False)
    log_level = models.CharField(max_length=20, blank=True)
    subscriptions = models.TextField(blank=True)
    last_used_at = models.DateTimeField(db_index=True)
    lost_at: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(null=True)
    """When the stream of an HTTP+SSE session ended. Its client may come back."""

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.id)


class InstanceRecord(models.Model):
    """One identity's instance of a server. It also counts requests of the stateless protocol, which have no session."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    process = models.ForeignKey(HostProcess, on_delete=models.CASCADE, related_name="instances")
    server_name = models.CharField("server", max_length=255, db_index=True)
    user_id = models.CharField(max_length=255, db_index=True)
    started_at = models.DateTimeField()
    last_request_at: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(
        "last stateless request", null=True, blank=True
    )
    ended_at: "models.DateTimeField[datetime | None, datetime | None]" = models.DateTimeField(null=True, blank=True)
    requests = models.PositiveBigIntegerField("stateless requests", default=0)
    calls = models.PositiveBigIntegerField("stateless tool calls", default=0)

    class Meta:
        verbose_name = "instance"
        default_permissions = ("view",)
        ordering = ["-started_at"]

    def __str__(self) -> str:
        return f"{self.server_name} · {self.user_id}"


class CallRecord(models.Model):
    """One call of a tool, or a refusal; of refusals that are alike, one row a minute says how many there were.

    Its rows are written in batches, without model objects (`calls`). There are few indexes: each costs a written row as
    much as the row itself, and a look through a million rows takes a fifth of a second.
    """

    class Outcome(models.TextChoices):
        """How it ended."""

        OK = "ok", "OK"
        ERROR = "error", "Error result"
        EXCEPTION = "exception", "Exception"
        TIMEOUT = "timeout", "Timed out"
        CANCELLED = "cancelled", "Cancelled"
        REFUSED = "refused", "Refused"

    at = models.DateTimeField("time")
    server_name = models.CharField("server", max_length=100, blank=True)
    tool = models.CharField(max_length=100, blank=True)
    user_id = models.CharField("user", max_length=255, blank=True)
    key = models.CharField(max_length=32, blank=True, help_text="The public part of the key.")
    session: "models.UUIDField[uuid.UUID | None, uuid.UUID | None]" = models.UUIDField(null=True, blank=True)
    client = models.CharField(max_length=120, blank=True, help_text="What the client says of itself.")
    protocol_version = models.CharField("era", max_length=20, blank=True)
    transport = models.CharField(max_length=20, blank=True)
    outcome = models.CharField(max_length=10, choices=Outcome.choices)
    milliseconds = models.FloatField("duration (ms)", default=0.0)
    size_bytes = models.PositiveBigIntegerField("size", default=0, help_text="How long the answer was, in bytes.")
    reason = models.CharField(max_length=200, blank=True)
    times = models.PositiveIntegerField(default=1, help_text="How many refusals of this kind the row stands for.")

    class Meta:
        verbose_name = "call"
        verbose_name_plural = "recent calls"
        default_permissions = ("view",)
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["outcome", "id"], name="calls_that_failed", condition=~models.Q(outcome="ok")),
            models.Index(fields=["key", "id"], name="refusals_of_a_key", condition=models.Q(outcome="refused")),
        ]

    def __str__(self) -> str:
        return f"{self.server_name} · {self.tool or self.reason} · {self.at:%Y-%m-%d %H:%M:%S}"


class MinuteRecord(models.Model):
    """What one process did in one minute: the past of the overview's plots."""

    at = models.DateTimeField(db_index=True)
    process_id = models.UUIDField()
    calls = models.PositiveIntegerField()
    errors = models.PositiveIntegerField()
    sessions = models.PositiveIntegerField()
    p50_ms: "models.FloatField[float | None, float | None]" = models.FloatField(null=True)
    p95_ms: "models.FloatField[float | None, float | None]" = models.FloatField(null=True)
    p99_ms: "models.FloatField[float | None, float | None]" = models.FloatField(null=True)
    memory_bytes = models.PositiveBigIntegerField()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M}"
