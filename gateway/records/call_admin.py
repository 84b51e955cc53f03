"""The admin page of recent calls: what users called, how it ended, and why something was refused.

A million rows must not make it slow. So it counts only as many rows as it has pages for, and its filters offer what
other tables say, not what these rows have.
"""

from functools import cached_property
from typing import Any, Final

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html

from gateway.read_only_admin import ReadOnlyAdmin
from gateway.records.models import CallRecord, ServerRecord

MAX_COUNTED: Final = 10_000
"""How many rows are counted, and can be paged through. Filters reach the others."""


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # Django's class takes no type argument when it runs
    """Counts `MAX_COUNTED` rows at the most."""

    @cached_property
    def count(self) -> int:
        """How many rows there are, as far as they are counted."""
        assert isinstance(self.object_list, QuerySet)
        return self.object_list.order_by().values("pk")[:MAX_COUNTED].count()


class _ServerFilter(admin.SimpleListFilter):
    title = "server"
    parameter_name = "server_name"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        names = ServerRecord.objects.exclude(status__in=["removed", "near miss"]).values_list("name", flat=True)
        return [(name, name) for name in dict.fromkeys(names)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[CallRecord]) -> QuerySet[CallRecord]:
        return queryset.filter(server_name=self.value()) if self.value() else queryset


class _ToolFilter(admin.SimpleListFilter):
    """The tools of the server that is chosen."""

    title = "tool"
    parameter_name = "tool"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        server_name, chosen = request.GET.get(_ServerFilter.parameter_name), request.GET.get(self.parameter_name)
        listed = ServerRecord.objects.filter(name=server_name).values_list("tools", flat=True) if server_name else ()
        names = {str(name) for tools in listed for name in tools} | ({chosen} if chosen else set())
        return [(name, name) for name in sorted(names)]

    def has_output(self) -> bool:
        return len(self.lookup_choices) > 0

    def queryset(self, request: HttpRequest, queryset: QuerySet[CallRecord]) -> QuerySet[CallRecord]:
        return queryset.filter(tool=self.value()) if self.value() else queryset


class _OutcomeFilter(admin.SimpleListFilter):
    title = "outcome"
    parameter_name = "outcome"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("failed", "All that failed"), *CallRecord.Outcome.choices]

    def queryset(self, request: HttpRequest, queryset: QuerySet[CallRecord]) -> QuerySet[CallRecord]:
        value = self.value()
        if value is None:
            return queryset
        if value != CallRecord.Outcome.OK:
            # In the words of the index that has these rows only.
            queryset = queryset.filter(~Q(outcome="ok"))
        return queryset if value == "failed" else queryset.filter(outcome=value)


@admin.register(CallRecord)
class CallAdmin(ReadOnlyAdmin):
    """Recent calls and refusals, the newest first."""

    list_display = [
        "at",
        "server_name",
        "tool",
        "user_id",
        "key",
        "ending",
        "reason",
        "duration",
        "size",
        "client",
        "protocol_version",
        "times",
    ]
    list_display_links = ["at"]
    list_filter = [_OutcomeFilter, _ServerFilter, _ToolFilter]
    search_fields = ["user_id", "key"]
    search_help_text = "The whole name of a user, or the public part of a key (gumcp_ and 8 characters)."
    sortable_by = ()
    paginator = BoundedPaginator
    show_full_result_count = False

    class Media:
        css = {"all": ["console/console.css"]}

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[CallRecord], search_term: str
    ) -> tuple[QuerySet[CallRecord], bool]:
        """Find calls of one user or key, by the whole name."""
        term = search_term.strip().rstrip("…")
        return (queryset.filter(Q(user_id=term) | Q(key=term)) if term else queryset), False

    @admin.display(description="outcome")
    def ending(self, call: CallRecord) -> str:
        """How it ended, with a colour."""
        return format_html('<span class="outcome-{}">{}</span>', call.outcome, call.get_outcome_display())

    @admin.display(description="duration")
    def duration(self, call: CallRecord) -> str:
        """How long it took."""
        if call.outcome == CallRecord.Outcome.REFUSED:
            return "-"
        return f"{call.milliseconds:,.1f} ms" if call.milliseconds < 10_000 else f"{call.milliseconds / 1000:,.1f} s"

    @admin.display(description="answer")
    def size(self, call: CallRecord) -> str:
        """How long the answer was."""
        if not call.size_bytes:
            return "-"
        return f"{call.size_bytes} B" if call.size_bytes < 10_000 else f"{call.size_bytes / 1024:,.0f} KiB"
