"""The admin pages of clients: sessions, and users of the stateless protocol, which has no sessions."""

from typing import Any, Final, NamedTuple
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.views.decorators.http import require_POST

from gateway.access import audit
from gateway.access.models import ApiKey
from gateway.admin_cells import NOTHING, Tone, ago, badge, link, list_url, row_url, short, two_lines
from gateway.console.list_filters import ServerFilter, StateFilter
from gateway.console.row_page import RowPage
from gateway.operator_commands import send_end_sessions
from gateway.printable import printable
from gateway.read_only_admin import ReadOnlyAdmin
from gateway.records.call_admin import OUTCOME_TONES, duration_text, size_text
from gateway.records.models import STATELESS, CallRecord, ServerRecord, SessionRecord

SHOWN_CALLS: Final = 50
"""How many calls a client's page shows."""

TRANSPORTS: Final = {
    "sse": "HTTP+SSE",
    "streamable-http": "Streamable HTTP",
    STATELESS: "Streamable HTTP",
    "console": "Playground",
}

_TONES: Final[dict[str, Tone]] = {
    SessionRecord.State.OPEN: "good",
    SessionRecord.State.STATELESS: "good",
    SessionRecord.State.CLOSED: "plain",
    SessionRecord.State.LOST: "bad",
}


class CallLine(NamedTuple):
    """One call in a client's timeline."""

    at: str
    tool: str
    outcome: str
    reason: str
    duration: str
    size: str


class _StateFilter(StateFilter):
    title = "state"
    parameter_name = "state__exact"
    choices_of_state = [
        ("connected", "Connected"),
        *((str(value), str(label)) for value, label in SessionRecord.State.choices),
    ]

    def in_state(self, queryset: "QuerySet[Any]", state: str) -> "QuerySet[Any]":
        return queryset.filter(state__in=SessionRecord.CONNECTED if state == "connected" else (state,))


class _TransportFilter(admin.SimpleListFilter):
    title = "transport"
    parameter_name = "transport"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, label) for value, label in TRANSPORTS.items() if value != STATELESS]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Any]") -> "QuerySet[Any]":
        return queryset.filter(transport=self.value()) if self.value() else queryset


class SessionAdmin(RowPage, ReadOnlyAdmin):
    """Clients, those that are connected at first, the most active ones first."""

    change_form_template = "console/session.html"
    list_display = ["user", "server", "state_badge", "client", "activity", "calls_count"]
    list_filter = [_StateFilter, _TransportFilter, "protocol_version", ServerFilter]
    search_fields = ["user_id", "server_name", "client_name", "address", "key"]
    search_help_text = "User, server, client, address, or the public part of a key."
    actions = ["end_sessions"]
    ordering = ["-last_activity_at"]
    fieldsets = [
        (
            None,
            {
                "fields": [
                    "state_badge",
                    "user_link",
                    "server_link",
                    "key_link",
                    "whole_client",
                    "address",
                    "opened",
                    "activity",
                    "closed",
                    "traffic",
                    "process",
                    "id",
                ]
            },
        )
    ]
    readonly_fields = [
        "state_badge",
        "user_link",
        "server_link",
        "key_link",
        "whole_client",
        "opened",
        "activity",
        "closed",
        "traffic",
    ]

    # -- What is shown -----------------------------------------------------------------------------------------------

    @admin.display(description="User", ordering="user_id")
    def user(self, session: SessionRecord) -> str:
        """Whose it is."""
        return short(session.user_id)

    @admin.display(description="Server", ordering="server_name")
    def server(self, session: SessionRecord) -> str:
        """Which server it uses."""
        return short(session.server_name)

    @admin.display(description="State", ordering="state")
    def state_badge(self, session: SessionRecord) -> str:
        """Whether it is connected, and why it ended."""
        label = SessionRecord.State(session.state).label.partition(" (")[0]
        why = "" if session.state in SessionRecord.CONNECTED else session.end_reason
        return two_lines(badge(label, _TONES.get(session.state, "plain")), short(why) if why else "")

    @admin.display(description="Client", ordering="client_name")
    def client(self, session: SessionRecord) -> str:
        """What the client says of itself, and which protocol it speaks."""
        return two_lines(short(_client_name(session), 30), _era(session))

    @admin.display(description="Client")
    def whole_client(self, session: SessionRecord) -> str:
        """The same on the client's own page, where there is room."""
        return two_lines(format_html("{}", printable(_client_name(session))) or NOTHING, _era(session))

    @admin.display(description="Last activity", ordering="last_activity_at")
    def activity(self, session: SessionRecord) -> str:
        """When the last message passed."""
        return ago(session.last_activity_at)

    @admin.display(description="Opened", ordering="opened_at")
    def opened(self, session: SessionRecord) -> str:
        """When it was opened."""
        return ago(session.opened_at)

    @admin.display(description="Ended")
    def closed(self, session: SessionRecord) -> str:
        """When it ended."""
        return ago(session.closed_at)

    @admin.display(description="Calls", ordering="calls")
    def calls_count(self, session: SessionRecord) -> str:
        """How many tools it has called."""
        return f"{session.calls:,}"

    @admin.display(description="Traffic")
    def traffic(self, session: SessionRecord) -> str:
        """How many messages passed."""
        sent = "" if session.transport == STATELESS else f", {session.messages_out:,} out"
        return f"{session.messages_in:,} messages in{sent}, {session.calls:,} tool calls"

    @admin.display(description="User")
    def user_link(self, session: SessionRecord) -> str:
        """Whose it is, and where that user is found."""
        user = User.objects.filter(username=session.user_id).only("pk").first()
        name = printable(session.user_id)
        shown = link(name, row_url("auth_user", user.pk)) if user is not None else format_html("{}", name)
        clients = link("all clients", list_url("records_sessionrecord", q=session.user_id, state__exact="all"))
        calls = link("recent calls", list_url("records_callrecord", q=session.user_id))
        return format_html("{} ({}, {})", shown, clients, calls)

    @admin.display(description="Server")
    def server_link(self, session: SessionRecord) -> str:
        """Which server it uses."""
        row = ServerRecord.objects.filter(name=session.server_name).order_by("-loaded_at").only("pk").first()
        name = printable(session.server_name)
        return link(name, row_url("records_serverrecord", row.pk)) if row is not None else format_html("{}", name)

    @admin.display(description="Key")
    def key_link(self, session: SessionRecord) -> str:
        """The key that it was opened with."""
        if not session.key:
            return NOTHING
        row = ApiKey.objects.filter(public=session.key).only("pk").first()
        shown = f"{session.key}…"
        return link(shown, row_url("access_apikey", row.pk)) if row is not None else shown

    def beside_fields(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """Show the client's calls, and the button that ends a session."""
        sees_calls = request.user.has_perm("records.view_callrecord")
        return {
            "calls": _timeline(obj) if sees_calls else [],
            "sees_calls": sees_calls,
            "max_calls": SHOWN_CALLS,
            "can_end": self.has_end_permission(request) and obj.state == SessionRecord.State.OPEN,
            "title": "Client",
        }

    # -- What operators do -------------------------------------------------------------------------------------------

    def has_end_permission(self, request: HttpRequest) -> bool:
        """Whether this operator may end sessions."""
        return bool(request.user.has_perm("records.end_session"))

    @admin.action(description="End the selected sessions", permissions=["end"])
    def end_sessions(self, request: HttpRequest, queryset: QuerySet[SessionRecord]) -> None:
        """End the selected sessions that are open."""
        count = end_sessions(request, list(queryset.values_list("id", flat=True)))
        self.message_user(request, f"{count} open sessions are being ended.", messages.SUCCESS)

    def get_urls(self) -> list[URLPattern]:
        """Add the button that ends one session."""
        end = path("<uuid:pk>/end/", self.admin_site.admin_view(self.end), name="records_sessionrecord_end")
        return [end, *super().get_urls()]

    @method_decorator(require_POST)
    def end(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """End one session."""
        if not self.has_end_permission(request):
            raise PermissionDenied
        if not SessionRecord.objects.filter(pk=pk).exists():
            raise Http404
        if end_sessions(request, [pk]):
            self.message_user(request, "The session is being ended.", messages.SUCCESS)
        else:
            self.message_user(request, "There is no open session to end.", messages.WARNING)
        return HttpResponseRedirect(reverse("admin:records_sessionrecord_changelist"))


def end_sessions(request: HttpRequest, row_ids: list[UUID]) -> int:
    """End those of these sessions that are open, and write it to the audit log. Returns how many."""
    sessions = list(SessionRecord.objects.filter(id__in=row_ids, state=SessionRecord.State.OPEN))
    ids = [session.id for session in sessions]
    # The row first: it is read even if the channel layer loses the command.
    SessionRecord.objects.filter(id__in=ids).update(is_end_requested=True)
    send_end_sessions(ids)
    for session in sessions:
        audit.record(audit.SESSION_ENDED, str(session), request=request)
    return len(ids)


def _client_name(session: SessionRecord) -> str:
    return f"{session.client_name} {session.client_version}".strip()


def _era(session: SessionRecord) -> str:
    transport = TRANSPORTS.get(session.transport, session.transport)
    return short(" · ".join(filter(None, (session.protocol_version, transport))), 60)


def _timeline(session: SessionRecord) -> list[CallLine]:
    """The newest calls of a session; of a client without one, those of its user at its server."""
    rows = CallRecord.objects.order_by("-id")
    if session.transport == STATELESS:
        rows = rows.filter(user_id=session.user_id, server_name=session.server_name, transport=STATELESS)
    else:
        rows = rows.filter(session=session.pk)
    return [
        CallLine(
            ago(call.at),
            short(call.tool),
            badge(call.get_outcome_display(), OUTCOME_TONES.get(call.outcome, "bad")),
            short(call.reason, 100) if call.reason else "",
            duration_text(call),
            size_text(call.size_bytes),
        )
        for call in rows[:SHOWN_CALLS]
    ]
