"""What operators see and do: servers and sessions, read only, and ending a session."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join

from gateway.control import send_end_sessions
from gateway.models import Server, Session

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:  # Django's class takes no type argument when it runs
    _ModelAdmin = admin.ModelAdmin


class ReadOnlyAdmin(_ModelAdmin):
    """Rows that mirror the running host: nobody writes them by hand."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Server)
class ServerAdmin(ReadOnlyAdmin):
    """The server folders that were found."""

    list_display = ["name", "status", "reason", "version", "tool_count", "folder", "loaded_at"]
    list_filter = ["status"]
    search_fields = ["name", "folder", "reason"]
    fieldsets = [
        (None, {"fields": ["name", "status", "version", "folder", "loaded_at", "load_time"]}),
        ("What it offers", {"fields": ["tool_names", "resource_names", "prompt_names"]}),
        ("Why it is not served", {"fields": ["reason", "traceback_text"], "classes": ["collapse"]}),
    ]
    readonly_fields = ["load_time", "tool_names", "resource_names", "prompt_names", "traceback_text"]

    @admin.display(description="Tools")
    def tool_count(self, server: Server) -> str:
        return str(len(server.tools)) if server.version or server.tools else "not asked yet"

    @admin.display(description="Load time")
    def load_time(self, server: Server) -> str:
        return f"{server.load_seconds * 1000:.0f} ms"

    @admin.display(description="Tools")
    def tool_names(self, server: Server) -> str:
        return _as_list(server.tools)

    @admin.display(description="Resources")
    def resource_names(self, server: Server) -> str:
        return _as_list(server.resources)

    @admin.display(description="Prompts")
    def prompt_names(self, server: Server) -> str:
        return _as_list(server.prompts)

    @admin.display(description="Traceback")
    def traceback_text(self, server: Server) -> str:
        return format_html("<pre>{}</pre>", server.traceback) if server.traceback else "-"


@admin.register(Session)
class SessionAdmin(ReadOnlyAdmin):
    """The sessions, open and ended."""

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
    def client(self, session: Session) -> str:
        return f"{session.client_name} {session.client_version}".strip() or "-"

    def has_end_permission(self, request: HttpRequest) -> bool:
        """Whether this operator may end sessions."""
        return bool(request.user.has_perm("gateway.end_session"))

    @admin.action(description="End the selected sessions", permissions=["end"])
    def end_sessions(self, request: HttpRequest, queryset: QuerySet[Session]) -> None:
        """Close the streams of the selected sessions that are open."""
        row_ids = list(queryset.filter(state=Session.State.OPEN).values_list("id", flat=True))
        # First what lasts, then what is quick: a command that the channel layer loses is found in the row.
        Session.objects.filter(id__in=row_ids).update(is_end_wanted=True)
        send_end_sessions(row_ids)
        self.message_user(request, f"{len(row_ids)} open sessions are being ended.", messages.SUCCESS)


def _as_list(names: list[str]) -> str:
    if not names:
        return "-"
    return format_html("<ul>{}</ul>", format_html_join("", "<li>{}</li>", ((name,) for name in names)))
