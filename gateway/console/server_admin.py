"""The admin pages of servers: what runs, what is wrong with it, what it offers, and how operators want it to run.

Not here: log lines, which the page reads from `console.log_lines`.
"""

import json
from typing import Any, Final, NamedTuple

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Case, Count, OuterRef, Q, QuerySet, Subquery, Value, When
from django.db.models.functions import Coalesce
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_POST

from gateway.admin_cells import NOTHING, ago, badge, link, list_url, short, two_lines, with_query
from gateway.apps import GatewayConfig
from gateway.conf import conf
from gateway.console.client_setups import Address
from gateway.console.list_filters import StateFilter, is_list
from gateway.console.log_lines import log_lines, may_see_log
from gateway.console.row_page import RowPage
from gateway.console.server_processes import server_processes
from gateway.instances.policies import LIMIT_FIELDS
from gateway.printable import LINES, printable
from gateway.read_only_admin import ReadOnlyAdmin
from gateway.records.models import ServerRecord, SessionRecord
from gateway.records.reload_requests import request_reload

SHOWN_REASON: Final = 160
"""How many characters of a reason the list shows."""


class Limit(NamedTuple):
    """One limit of a server's calls."""

    name: str
    value: str
    source: str
    """Where the value comes from."""


class Tool(NamedTuple):
    """One tool as the page shows it."""

    name: str
    title: str
    description: str
    schemas: list[tuple[str, str]]
    """What each is for, and the schema as JSON."""


class _StatusFilter(StateFilter):
    title = "status"
    parameter_name = "status__exact"
    choices_of_state = [
        ("present", "In a folder now"),
        *((str(value), str(label)) for value, label in ServerRecord.Status.choices),
    ]

    def in_state(self, queryset: "QuerySet[Any]", state: str) -> "QuerySet[Any]":
        if state == "present":
            return queryset.exclude(status=ServerRecord.Status.REMOVED)
        return queryset.filter(status=state)


class ServerAdmin(RowPage, ReadOnlyAdmin):
    """The servers that were found, those that fail first."""

    change_form_template = "console/server.html"
    list_display = ["name", "state", "session_count", "tool_count", "version", "loaded"]
    list_filter = [_StatusFilter, "is_enabled"]
    search_fields = ["name", "folder", "reason"]
    actions = ["enable_servers", "disable_servers", "reload_servers"]
    fieldsets = [
        (None, {"fields": ["state", "version", "folder", "loaded", "load_time"]}),
        (
            "How it is run",
            {
                "fields": ["is_enabled", *LIMIT_FIELDS, "isolation"],
                "description": "Changes take effect within five seconds, without a restart.",
            },
        ),
    ]
    readonly_fields = ["state", "version", "folder", "loaded", "load_time"]

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any]":
        """Add what the list sorts by and counts. Long texts are left out of the list."""
        # Not that of Django's class: it would order the rows by what is added here.
        rows: QuerySet[Any] = ServerRecord.objects.all()
        if not is_list(request):
            return rows
        open_sessions = SessionRecord.objects.filter(server_name=OuterRef("name"), state__in=SessionRecord.CONNECTED)
        count = open_sessions.order_by().values("server_name").annotate(count=Count("id")).values("count")
        annotated: QuerySet[Any] = rows.defer("traceback", "tool_definitions", "resources", "prompts").annotate(
            trouble=Case(
                When(status=ServerRecord.Status.FAILED, then=Value(0)),
                When(~Q(reason="") & Q(status=ServerRecord.Status.LOADED), then=Value(1)),
                When(~Q(condition=""), then=Value(1)),
                When(is_enabled=False, then=Value(2)),
                When(status=ServerRecord.Status.NEAR_MISS, then=Value(3)),
                When(status=ServerRecord.Status.REMOVED, then=Value(5)),
                default=Value(4),
            ),
            open_sessions=Coalesce(Subquery(count), Value(0)),
        )
        return annotated

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Those that fail come first."""
        return ("trouble", "name") if is_list(request) else ("name",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the operator may change how servers are run. All other fields are read-only."""
        return bool(request.user.has_perm("records.change_serverrecord"))

    def save_model(
        self, request: HttpRequest, obj: ServerRecord, form: "ModelForm[ServerRecord]", change: bool
    ) -> None:
        """Write only the fields that were changed: the recorder writes to the same row."""
        obj.save(update_fields=form.changed_data)

    # -- What is shown of a server -----------------------------------------------------------------------------------

    @admin.display(description="State", ordering="trouble")
    def state(self, server: ServerRecord) -> str:
        """Whether it is served, and what is wrong."""
        why = " ".join(filter(None, (server.reason, server.condition)))
        return two_lines(_badge(server), short(why, SHOWN_REASON) if why else "")

    @admin.display(description="Clients", ordering="open_sessions")
    def session_count(self, server: Any) -> str:
        """How many clients it has now."""
        if not server.open_sessions:
            return "0"
        return link(str(server.open_sessions), list_url("records_sessionrecord", server_name=server.name))

    @admin.display(description="Tools")
    def tool_count(self, server: ServerRecord) -> str:
        """How many tools the server has. Known after its first user."""
        return str(len(server.tools)) if server.version or server.tools else NOTHING

    @admin.display(description="Loaded", ordering="loaded_at")
    def loaded(self, server: ServerRecord) -> str:
        """When the code that is served was loaded."""
        return ago(server.loaded_at)

    @admin.display(description="Load time")
    def load_time(self, server: ServerRecord) -> str:
        """How long the module took to load."""
        return f"{server.load_seconds * 1000:.0f} ms"

    def beside_fields(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """Show what the row's fields do not say."""
        return _page(request, obj)

    # -- What operators do -------------------------------------------------------------------------------------------

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
        servers = ServerRecord.objects.filter(pk__in=list(queryset.values_list("pk", flat=True)))
        request_reload(servers)
        for server in servers:
            self.log_change(request, server, "Reloaded.")
        text = f"{len(servers)} servers are being reloaded. If one fails, its page shows why."
        self.message_user(request, text, messages.SUCCESS)

    def get_urls(self) -> list[URLPattern]:
        """Add the button that looks for new folders, and the log lines."""
        view = self.admin_site.admin_view
        return [
            path("look/", view(self.look_for_folders), name="records_serverrecord_look"),
            path("<int:pk>/log/", view(self.log), name="records_serverrecord_log"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the button to operators who may use it."""
        return super().changelist_view(
            request, {**(extra_context or {}), "can_look": self.has_change_permission(request)}
        )

    @method_decorator(require_POST)
    def look_for_folders(self, request: HttpRequest) -> HttpResponse:
        """Let the running hosts serve new folders and drop removed ones."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        request_reload()
        text = "New folders are being loaded. They are listed here when that is done, with the reason if one fails."
        self.message_user(request, text, messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:records_serverrecord_changelist"))

    def log(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The log lines of one server that came after the one that the caller has."""
        return log_lines(request, ServerRecord.objects.filter(pk=pk).values_list("name", flat=True).first())


def _badge(server: ServerRecord) -> str:
    if server.status == ServerRecord.Status.FAILED:
        return badge("Failed", "bad")
    if server.status != ServerRecord.Status.LOADED:
        return badge(server.get_status_display(), "plain")
    if not server.is_enabled:
        return badge("Switched off", "warn")
    if server.condition or server.reason:
        return badge("Trouble", "bad")
    return badge("Loaded", "good")


def _page(request: HttpRequest, server: ServerRecord) -> dict[str, Any]:
    """What the server's page shows beside its fields."""
    needs_key = conf.auth_mode == "keys"
    address = Address(conf.base_url, server.name, request.user.get_username(), needs_key)
    sessions = SessionRecord.objects.filter(server_name=server.name, state__in=SessionRecord.CONNECTED)
    return {
        "url": address.server_url,
        "needs_key": needs_key,
        "connect_url": with_query(reverse("console:connect"), {"server": server.name}),
        "session_count": sessions.count(),
        "sessions_url": list_url("records_sessionrecord", server_name=server.name),
        "ended_url": list_url("records_sessionrecord", server_name=server.name, state__exact="all"),
        "tools": _tools(server),
        **_call_links(request, server),
        **server_processes(request, server),
        "resources": [printable(str(name)) for name in server.resources],
        "prompts": [printable(str(name)) for name in server.prompts],
        "limits": _limits(server),
        "log_url": reverse("admin:records_serverrecord_log", args=[server.pk]) if may_see_log(request) else "",
    }


def _call_links(request: HttpRequest, server: ServerRecord) -> dict[str, str]:
    if not request.user.has_perm("records.view_callrecord"):
        return {}
    return {
        "calls_url": list_url("records_callrecord", server_name=server.name),
        "failures_url": list_url("records_callrecord", server_name=server.name, outcome="failed"),
    }


def _tools(server: ServerRecord) -> list[Tool]:
    definitions = json.loads(server.tool_definitions) if server.tool_definitions else []
    known = {str(definition.get("name", "")): definition for definition in definitions}
    return [_tool(str(name), known.get(str(name), {})) for name in server.tools]


def _tool(name: str, definition: dict[str, Any]) -> Tool:
    schemas = [
        (title, printable(json.dumps(definition[field], indent=2, ensure_ascii=False), LINES))
        for field, title in (("inputSchema", "Arguments"), ("outputSchema", "Result"), ("annotations", "Annotations"))
        if definition.get(field)
    ]
    title, description = str(definition.get("title") or ""), str(definition.get("description") or "")
    return Tool(printable(name), printable(title), printable(description.strip(), LINES), schemas)


def _limits(server: ServerRecord) -> list[Limit]:
    """The values in force: the row's, or the settings'."""
    limits = []
    for field in LIMIT_FIELDS:
        own = getattr(server, field)
        value = getattr(conf, field) if own in (None, "") else own
        label = str(ServerRecord._meta.get_field(field).verbose_name).capitalize()  # type: ignore[union-attr]
        source = f"the setting GUMCP_{field.upper()}" if own in (None, "") else "this page"
        if field == "call_timeout_seconds" and own is None:
            of_manifest = GatewayConfig.current().registry.own_call_timeout(server.name)
            value, source = (value, source) if of_manifest is None else (of_manifest, "its server.json")
        limits.append(Limit(label, _limit_text(field, value), source))
    return limits


def _limit_text(field: str, value: Any) -> str:
    if field == "when_blocked":
        return str(value)
    if not value:
        return "no limit"
    return f"{value:g} s" if field.endswith("_seconds") else f"{value}"
