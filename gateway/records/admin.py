"""Admin pages for processes, servers, instances and sessions.

Operators enable, limit and reload servers, and end sessions.

Not here: recent calls (`call_admin`), audit events and limit hits (`access.admin`), keys (`console`).
"""

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef, QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join

from gateway.access import audit
from gateway.operator_commands import send_end_sessions
from gateway.read_only_admin import ReadOnlyAdmin
from gateway.records import call_admin  # noqa: F401  (imported for its registration)
from gateway.records.models import HostProcess, InstanceRecord, ServerRecord, SessionRecord
from gateway.records.processes import running_hosts
from gateway.records.reload_requests import request_reload


@admin.register(ServerRecord)
class ServerAdmin(ReadOnlyAdmin):
    """The servers that were found, and how they are run."""

    list_display = ["name", "status", "is_enabled", "condition", "reason", "version", "tool_count", "loaded_at"]
    list_filter = ["status", "is_enabled"]
    search_fields = ["name", "folder", "reason"]
    actions = ["enable_servers", "disable_servers", "reload_servers"]
    fieldsets = [
        (None, {"fields": ["name", "status", "condition", "version", "folder", "loaded_at", "load_time"]}),
        (
            "How it is run",
            {
                "fields": [
                    "is_enabled",
                    "call_timeout_seconds",
                    "max_call_seconds",
                    "max_concurrent_calls",
                    "max_concurrent_calls_per_user",
                    "max_threads",
                    "when_blocked",
                    "isolation",
                ],
                "description": "Changes take effect within five seconds, without a restart.",
            },
        ),
        ("What it offers", {"fields": ["tool_names", "resource_names", "prompt_names"]}),
        ("Why the server, or its newest code, is not served", {"fields": ["reason", "traceback_text"]}),
    ]
    readonly_fields = [
        "name",
        "status",
        "condition",
        "version",
        "folder",
        "loaded_at",
        "load_time",
        "tool_names",
        "resource_names",
        "prompt_names",
        "reason",
        "traceback_text",
    ]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the operator may change how servers are run. All other fields are read-only."""
        return bool(request.user.has_perm("records.change_serverrecord"))

    def save_model(
        self, request: HttpRequest, obj: ServerRecord, form: "ModelForm[ServerRecord]", change: bool
    ) -> None:
        """Write only the fields that were changed: the recorder writes to the same row."""
        obj.save(update_fields=form.changed_data)

    @admin.display(description="Tools")
    def tool_count(self, server: ServerRecord) -> str:
        """How many tools the server has. Known after its first user."""
        return str(len(server.tools)) if server.version or server.tools else "not asked yet"

    @admin.display(description="Load time")
    def load_time(self, server: ServerRecord) -> str:
        """How long the module took to load."""
        return f"{server.load_seconds * 1000:.0f} ms"

    @admin.display(description="Tools")
    def tool_names(self, server: ServerRecord) -> str:
        """The tools as a list."""
        return _as_list(server.tools)

    @admin.display(description="Resources")
    def resource_names(self, server: ServerRecord) -> str:
        """The resources as a list."""
        return _as_list(server.resources)

    @admin.display(description="Prompts")
    def prompt_names(self, server: ServerRecord) -> str:
        """The prompts as a list."""
        return _as_list(server.prompts)

    @admin.display(description="Traceback")
    def traceback_text(self, server: ServerRecord) -> str:
        """The traceback, as Python prints it."""
        return format_html('<pre tabindex="0">{}</pre>', server.traceback) if server.traceback else "-"

    @admin.action(description="Switch the selected servers on", permissions=["change"])
    def enable_servers(self, request: HttpRequest, queryset: QuerySet[ServerRecord]) -> None:
        """Let clients use the servers again."""
        self._switch(request, queryset, is_enabled=True)

    @admin.action(description="Switch the selected servers off", permissions=["change"])
    def disable_servers(self, request: HttpRequest, queryset: QuerySet[ServerRecord]) -> None:
        """Answer clients of the servers with 503, and close their sessions."""
        self._switch(request, queryset, is_enabled=False)

    def _switch(self, request: HttpRequest, queryset: QuerySet[ServerRecord], *, is_enabled: bool) -> None:
        changed = list(queryset.exclude(is_enabled=is_enabled))
        for server in changed:
            server.is_enabled = is_enabled
            server.save(update_fields=["is_enabled"])
            self.log_change(request, server, "Switched on." if is_enabled else "Switched off.")
        self.message_user(request, f"{len(changed)} servers switched.", messages.SUCCESS)

    @admin.action(description="Reload the selected servers", permissions=["change"])
    def reload_servers(self, request: HttpRequest, queryset: QuerySet[ServerRecord]) -> None:
        """Load the servers' code again. Requests under way finish on the old code."""
        request_reload(queryset)
        for server in queryset:
            self.log_change(request, server, "Reloaded.")
        text = f"{queryset.count()} servers are being reloaded. If one fails, its page shows why."
        self.message_user(request, text, messages.SUCCESS)

    def get_urls(self) -> list[URLPattern]:
        """Add the address of the button that looks for new folders."""
        look = path("look/", self.admin_site.admin_view(self.look_for_folders), name="records_serverrecord_look")
        return [look, *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the button to operators who may use it."""
        return super().changelist_view(
            request, {**(extra_context or {}), "can_look": self.has_change_permission(request)}
        )

    def look_for_folders(self, request: HttpRequest) -> HttpResponse:
        """Let the running hosts serve new folders and drop removed ones."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if not self.has_change_permission(request):
            raise PermissionDenied
        request_reload()
        text = "New folders are being loaded. They are listed here when that is done, with the reason if one fails."
        self.message_user(request, text, messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:records_serverrecord_changelist"))


@admin.register(HostProcess)
class HostProcessAdmin(ReadOnlyAdmin):
    """The processes that serve, and those that have served."""

    list_display = [
        "__str__",
        "state",
        "node",
        "slot",
        "version",
        "load_percent",
        "memory",
        "started_at",
        "last_seen_at",
    ]
    list_filter = ["hostname", "node"]
    readonly_fields = ["state", "load_percent", "memory"]
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
        "started_at",
        "last_seen_at",
        "conditions",
    ]

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        """Add to each row whether the process has been heard of lately, by the database's clock."""
        is_running = Exists(running_hosts().filter(id=OuterRef("id")))
        rows: QuerySet[Any] = super().get_queryset(request).annotate(is_running=is_running)
        return rows

    @admin.display(description="State")
    def state(self, process: Any) -> str:
        """Whether it serves."""
        if not process.is_running:
            return "ended"
        return "draining" if process.is_draining else "serving"

    @admin.display(description="Load", ordering="load")
    def load_percent(self, process: HostProcess) -> str:
        """Processor time, of one core."""
        return f"{process.load:.0%}"

    @admin.display(description="Memory", ordering="memory_bytes")
    def memory(self, process: HostProcess) -> str:
        """The memory that it occupies."""
        return f"{process.memory_bytes / 2**20:.0f} MiB" if process.memory_bytes else "-"


@admin.register(InstanceRecord)
class InstanceAdmin(ReadOnlyAdmin):
    """Instances, and the requests that belong to no session."""

    list_display = ["user_id", "server_name", "started_at", "ended_at", "last_request_at", "requests", "calls"]
    list_filter = [("ended_at", admin.EmptyFieldListFilter), "server_name"]
    search_fields = ["user_id", "server_name"]


@admin.register(SessionRecord)
class SessionAdmin(ReadOnlyAdmin):
    """Sessions, open and ended."""

    list_display = [
        "user_id",
        "server_name",
        "state",
        "transport",
        "client",
        "protocol_version",
        "address",
        "opened_at",
        "last_activity_at",
        "messages_in",
        "messages_out",
        "calls",
    ]
    list_filter = ["state", "server_name", "transport", "protocol_version"]
    search_fields = ["user_id", "server_name", "client_name", "address"]
    date_hierarchy = "opened_at"
    actions = ["end_sessions"]
    fieldsets = [
        (None, {"fields": ["server_name", "user_id", "state", "end_reason"]}),
        ("Client", {"fields": ["transport", "client", "protocol_version", "address"]}),
        ("Time", {"fields": ["opened_at", "last_activity_at", "closed_at"]}),
        ("Traffic", {"fields": ["messages_in", "messages_out", "calls"]}),
        ("Where it is", {"fields": ["process", "id"]}),
    ]
    readonly_fields = ["client"]

    @admin.display(description="Client", ordering="client_name")
    def client(self, session: SessionRecord) -> str:
        return f"{session.client_name} {session.client_version}".strip() or "-"

    def has_end_permission(self, request: HttpRequest) -> bool:
        """Whether this operator may end sessions."""
        return bool(request.user.has_perm("records.end_session"))

    @admin.action(description="End the selected sessions", permissions=["end"])
    def end_sessions(self, request: HttpRequest, queryset: QuerySet[SessionRecord]) -> None:
        """End the selected sessions that are open."""
        row_ids = list(queryset.filter(state=SessionRecord.State.OPEN).values_list("id", flat=True))
        # The row first: it is read even if the channel layer loses the command.
        SessionRecord.objects.filter(id__in=row_ids).update(is_end_requested=True)
        send_end_sessions(row_ids)
        for session in SessionRecord.objects.filter(id__in=row_ids):
            audit.record(audit.SESSION_ENDED, str(session), request=request)
        self.message_user(request, f"{len(row_ids)} open sessions are being ended.", messages.SUCCESS)


def _as_list(names: list[str]) -> str:
    if not names:
        return "-"
    return format_html("<ul>{}</ul>", format_html_join("", "<li>{}</li>", ((name,) for name in names)))
