"""The admin page of users, with what each has: keys, clients and calls."""

from typing import Any, Final
from uuid import UUID

from django.contrib import admin
from django.contrib.auth.models import User
from django.db.models import Count, OuterRef, QuerySet, Subquery, Value
from django.db.models.functions import Coalesce
from django.http import HttpRequest

from gateway.access.admin import AuditedUserAdmin
from gateway.access.models import ApiKey
from gateway.admin_cells import ago, badge, link, list_url, short, two_lines
from gateway.console.key_admin import state_badge
from gateway.console.list_filters import EVERYTHING, is_list
from gateway.console.row_page import RowPage
from gateway.records.models import SessionRecord

SHOWN_ROWS: Final = 20
"""How many keys and clients a user's page shows. The lists have all."""


class UserAdmin(RowPage, AuditedUserAdmin):
    """Users, and what each of them uses."""

    change_form_template = "console/user.html"
    list_display = ("username", "state", "key_count", "client_count", "last_login_ago")
    list_filter = ("is_active", "is_staff", "is_superuser")

    def get_queryset(self, request: HttpRequest) -> "QuerySet[User]":
        """Count, where the list shows it, keys that are not revoked and clients that are connected."""
        rows: QuerySet[Any] = super().get_queryset(request)
        if not is_list(request):
            return rows
        sessions = SessionRecord.objects.filter(user_id=OuterRef("username"), state__in=SessionRecord.CONNECTED)
        clients = sessions.order_by().values("user_id").annotate(count=Count("id")).values("count")
        issued = ApiKey.objects.filter(user=OuterRef("pk"), revoked_at=None)
        keys = issued.order_by().values("user").annotate(count=Count("id")).values("count")
        annotated: QuerySet[Any] = rows.annotate(
            keys=Coalesce(Subquery(keys), Value(0)), clients=Coalesce(Subquery(clients), Value(0))
        )
        return annotated

    @admin.display(description="State", ordering="-is_active")
    def state(self, user: User) -> str:
        """Whether the user's keys and logins are taken, and whether the user is an operator."""
        state = badge("Active", "good") if user.is_active else badge("Disabled", "bad")
        return two_lines(state, "operator" if user.is_staff else "")

    @admin.display(description="Keys", ordering="keys")
    def key_count(self, user: Any) -> str:
        """How many keys the user has that are not revoked."""
        return link(str(user.keys), list_url("access_apikey", user__id__exact=user.pk)) if user.keys else "0"

    @admin.display(description="Clients", ordering="clients")
    def client_count(self, user: Any) -> str:
        """How many clients of the user are connected."""
        if not user.clients:
            return "0"
        return link(str(user.clients), list_url("records_sessionrecord", user_id=user.username))

    @admin.display(description="Last login", ordering="last_login")
    def last_login_ago(self, user: User) -> str:
        """When the user last logged in to these pages."""
        return ago(user.last_login)

    def beside_fields(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """Show what the user has."""
        return _page(request, obj)


def _page(request: HttpRequest, user: User) -> dict[str, Any]:
    """What a user's page shows beside the fields. What the operator may not see is None."""
    name, may = user.get_username(), request.user.has_perm
    page: dict[str, Any] = {"keys": None, "clients": None, "calls_url": ""}
    if may("access.view_apikey"):
        rows = ApiKey.objects.filter(user=user).select_related("user")[:SHOWN_ROWS]
        page["keys"] = [(key, state_badge(key), ago(key.last_used_at)) for key in rows]
        page["keys_url"] = list_url("access_apikey", user__id__exact=user.pk, state=EVERYTHING)
    if may("records.view_sessionrecord"):
        open_rows = SessionRecord.objects.filter(user_id=name, state__in=SessionRecord.CONNECTED)
        newest = open_rows.order_by("-last_activity_at")[:SHOWN_ROWS]
        page["clients"] = [_client(client) for client in newest]
        page["clients_url"] = list_url("records_sessionrecord", user_id=name, state__exact=EVERYTHING)
    if may("records.view_callrecord"):
        page["calls_url"] = list_url("records_callrecord", q=name)
    return page


def _client(row: SessionRecord) -> tuple[UUID, str, str, str, str]:
    """What a user's page shows of a client: its primary key, server, name, protocol and last activity."""
    return (
        row.pk,
        short(row.server_name),
        short(row.client_name),
        row.protocol_version,
        ago(row.last_activity_at),
    )
