"""What the admin's lists share: filters by server, and by state with a state that is chosen at first."""

from typing import Any, ClassVar, Final

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from gateway.records.models import ServerRecord

EVERYTHING: Final = "all"


def is_list(request: HttpRequest) -> bool:
    """Whether the request is for a list, and not for a row's page."""
    match = request.resolver_match
    return match is not None and (match.url_name or "").endswith("_changelist")


class ServerFilter(admin.SimpleListFilter):
    """The servers that there are. It does not read the rows that it filters: there may be many."""

    title = "server"
    parameter_name = "server_name"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The names of the servers, and the one that is chosen."""
        names = set(ServerRecord.objects.filter(status="loaded").values_list("name", flat=True))
        chosen = request.GET.get(self.parameter_name)
        return [(name, name) for name in sorted({*names, chosen} if chosen else names)]

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Any]") -> "QuerySet[Any]":
        """The rows of the chosen server."""
        return queryset.filter(server_name=self.value()) if self.value() else queryset


class StateFilter(admin.SimpleListFilter):
    """A filter that is in force before anybody chooses: the first of its choices. Its last choice is everything."""

    choices_of_state: ClassVar[list[tuple[str, str]]]

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The states, and everything."""
        return [*self.choices_of_state, (EVERYTHING, "All")]

    def value(self) -> str:
        """The state that is chosen; the first one if none is."""
        return super().value() or self.choices_of_state[0][0]

    def choices(self, changelist: Any) -> Any:
        """The links. Django's own "All" is left out: no choice means the first state."""
        links = super().choices(changelist)
        next(links)
        yield from links

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Any]") -> "QuerySet[Any]":
        """The rows in that state."""
        return queryset if self.value() == EVERYTHING else self.in_state(queryset, self.value())

    def in_state(self, queryset: "QuerySet[Any]", state: str) -> "QuerySet[Any]":
        """The rows in one state."""
        return queryset.filter(**{self.parameter_name or "": state})
