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

from gateway.admin_cells import NOTHING, Tone, ago, badge, short, two_lines
from gateway.read_only_admin import ReadOnlyAdmin
from gateway.records.models import CallRecord, ServerRecord

MAX_COUNTED: Final = 10_000
"""How many rows are counted, and can be paged through. Filters reach the others."""


OUTCOME_TONES: Final[dict[str, Tone]] = {"ok": "good", "refused": "warn", "cancelled": "warn"}
"""The colours of outcomes. All others are failures."""


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

    list_display = ["when", "call", "caller", "ending", "took", "client_and_era"]
    list_display_links = ["when"]
    list_filter = [_OutcomeFilter, _ServerFilter, _ToolFilter]
    search_fields = ["user_id", "key"]
    search_help_text = "The whole name of a user, or the public part of a key (gumcp_ and 8 characters)."
    sortable_by = ()
    paginator = BoundedPaginator
    show_full_result_count = False

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[CallRecord], search_term: str
    ) -> tuple[QuerySet[CallRecord], bool]:
        """Find calls of one user or key, by the whole name."""
        term = search_term.strip().rstrip("…")
        return (queryset.filter(Q(user_id=term) | Q(key=term)) if term else queryset), False

    @admin.display(description="When")
    def when(self, call: CallRecord) -> str:
        """When it ended."""
        return ago(call.at)

    @admin.display(description="Call")
    def call(self, call: CallRecord) -> str:
        """What was called, and at which server."""
        server = short(call.server_name)
        return two_lines(short(call.tool), server) if call.tool else server

    @admin.display(description="User")
    def caller(self, call: CallRecord) -> str:
        """Who called, with which key."""
        return two_lines(short(call.user_id), f"{call.key}…" if call.key else "")

    @admin.display(description="Outcome")
    def ending(self, call: CallRecord) -> str:
        """How it ended, why it was refused, and how often."""
        why = short(call.reason, 120) if call.reason else ""
        outcome = badge(call.get_outcome_display(), OUTCOME_TONES.get(call.outcome, "bad"))
        return two_lines(outcome, f"{why} ({call.times} times)" if call.times > 1 else why)

    @admin.display(description="Took")
    def took(self, call: CallRecord) -> str:
        """How long it took, and how long the answer was."""
        size = size_text(call.size_bytes)
        return two_lines(duration_text(call), "" if size == NOTHING else size)

    @admin.display(description="Client")
    def client_and_era(self, call: CallRecord) -> str:
        """What the client says of itself, and which protocol it speaks."""
        return two_lines(short(call.client, 30), short(call.protocol_version))


def duration_text(call: CallRecord) -> str:
    """How long a call took."""
    if call.outcome == CallRecord.Outcome.REFUSED:
        return NOTHING
    return f"{call.milliseconds:,.1f} ms" if call.milliseconds < 10_000 else f"{call.milliseconds / 1000:,.1f} s"


def size_text(size_bytes: int) -> str:
    """A number of bytes as people read it."""
    if not size_bytes:
        return NOTHING
    return f"{size_bytes} B" if size_bytes < 10_000 else f"{size_bytes / 1024:,.0f} KiB"
