"""Admin pages for processes and instances.

Not here: servers, clients and keys (`console`), recent calls (`call_admin`), the audit log (`access.admin`).
"""

from typing import Any

from django.contrib import admin
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest

from gateway.admin_cells import NOTHING, ago, badge, two_lines
from gateway.read_only_admin import ReadOnlyAdmin
from gateway.records import call_admin  # noqa: F401  (imported for its registration)
from gateway.records.models import HostProcess, InstanceRecord
from gateway.records.processes import running_hosts


@admin.register(HostProcess)
class HostProcessAdmin(ReadOnlyAdmin):
    """The processes that serve, and those that have served."""

    list_display = ["process", "state", "load_percent", "memory", "version", "started", "seen"]
    list_filter = ["hostname"]
    search_fields = ["hostname", "node"]
    readonly_fields = ["state", "load_percent", "memory", "started", "seen"]
    fields = [
        "hostname",
        "pid",
        "node",
        "slot",
        "peer_address",
        "version",
        "state",
        "load_percent",
        "memory",
        "started",
        "seen",
        "conditions",
    ]

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        """Add to each row whether the process has been heard of lately, by the database's clock."""
        is_running = Exists(running_hosts().filter(id=OuterRef("id")))
        rows: QuerySet[Any] = super().get_queryset(request).annotate(is_running=is_running)
        return rows

    @admin.display(description="Process", ordering="hostname")
    def process(self, process: HostProcess) -> str:
        """Which process it is, and where it stands among others."""
        place = [f"node {process.node}"] if process.node else []
        if process.slot is not None:
            place.append(f"worker {process.slot}")
        return two_lines(str(process), ", ".join(place))

    @admin.display(description="State")
    def state(self, process: Any) -> str:
        """Whether it serves."""
        if not process.is_running:
            return badge("ended", "plain")
        return badge("draining", "warn") if process.is_draining else badge("serving", "good")

    @admin.display(description="Load", ordering="load")
    def load_percent(self, process: HostProcess) -> str:
        """Processor time, of one core."""
        return f"{process.load:.0%}"

    @admin.display(description="Memory", ordering="memory_bytes")
    def memory(self, process: HostProcess) -> str:
        """The memory that it occupies."""
        return f"{process.memory_bytes / 2**20:.0f} MiB" if process.memory_bytes else NOTHING

    @admin.display(description="Started", ordering="started_at")
    def started(self, process: HostProcess) -> str:
        """When it was started."""
        return ago(process.started_at)

    @admin.display(description="Last seen", ordering="last_seen_at")
    def seen(self, process: HostProcess) -> str:
        """When it last said that it is there."""
        return ago(process.last_seen_at)


@admin.register(InstanceRecord)
class InstanceAdmin(ReadOnlyAdmin):
    """Instances, and the requests that belong to no session."""

    list_display = ["user_id", "server_name", "started", "ended", "last_request", "request_count"]
    list_filter = [("ended_at", admin.EmptyFieldListFilter)]
    search_fields = ["user_id", "server_name"]

    @admin.display(description="Started", ordering="started_at")
    def started(self, instance: InstanceRecord) -> str:
        """When it was made."""
        return ago(instance.started_at)

    @admin.display(description="Ended", ordering="ended_at")
    def ended(self, instance: InstanceRecord) -> str:
        """When it ended."""
        return ago(instance.ended_at)

    @admin.display(description="Requests", ordering="requests")
    def request_count(self, instance: InstanceRecord) -> str:
        """How many requests without a session came, and how many of them called a tool."""
        return two_lines(f"{instance.requests:,}", f"{instance.calls:,} calls")

    @admin.display(description="Last request", ordering="last_request_at")
    def last_request(self, instance: InstanceRecord) -> str:
        """When the last request without a session came."""
        return ago(instance.last_request_at)
