"""The admin pages of alerts: who is told, with a test and the signing secret, and what was wrong."""

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_POST

from gateway.access import audit
from gateway.access.admin import AuditedDeletions
from gateway.admin_cells import NOTHING, Tone, ago, badge, row_url, short, two_lines
from gateway.alerts.models import Alert, AlertDestination, AlertMessage, make_salt
from gateway.alerts.outbox import write_test
from gateway.alerts.signing import shown_secret
from gateway.alerts.troubles import EVENT_LABELS, EVENTS
from gateway.conf import conf
from gateway.console.list_filters import StateFilter
from gateway.console.row_page import RowPage
from gateway.read_only_admin import ReadOnlyAdmin

if TYPE_CHECKING:
    _DestinationForm = forms.ModelForm[AlertDestination]
else:  # Django's class takes no type argument when it runs
    _DestinationForm = forms.ModelForm

SHOWN_MESSAGES: Final = 20
"""How many messages the page of a destination shows."""

_TONES: Final[dict[str, Tone]] = {
    AlertMessage.State.WAITING: "warn",
    AlertMessage.State.SENT: "good",
    AlertMessage.State.GIVEN_UP: "bad",
}


class MessageLine(NamedTuple):
    """One message as the page of its destination shows it."""

    at: str
    about: str
    state: str
    attempts: int
    error: str


class DestinationForm(_DestinationForm):
    """A destination, with the events that it wants to hear as boxes to tick."""

    events = forms.MultipleChoiceField(
        label="Wants to hear",
        choices=[(event, EVENT_LABELS[event]) for event in EVENTS],
        widget=forms.CheckboxSelectMultiple,
        initial=list(EVENTS),
        help_text="Each when it begins and when it is over. Who hears of failed and blocked servers does not hear of "
        "them again as a degraded host.",
    )

    class Meta:
        model = AlertDestination
        fields = ("name", "kind", "url", "addresses", "events", "is_enabled")
        widgets = {name: forms.TextInput(attrs={"class": "vLargeTextField"}) for name in ("url", "addresses")}

    def clean(self) -> dict[str, Any] | None:
        """Refuse e-mail where there is no mail server."""
        cleaned = super().clean()
        if self.cleaned_data.get("kind") == AlertDestination.Kind.EMAIL and not conf.email_url:
            self.add_error("kind", "This host has no mail server. Set GUMCP_EMAIL_URL, and restart it.")
        return cleaned


class AlertDestinationAdmin(RowPage, AuditedDeletions):
    """Who is told of alerts."""

    form = DestinationForm
    change_form_template = "console/alert_destination.html"
    list_display = ["name", "place", "hears", "state", "result"]
    list_filter = ["kind", "is_enabled"]
    search_fields = ["name"]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Show the whole URL only to those who may change it: paths of webhooks often have a token in them."""
        if obj is not None and not self.has_change_permission(request, obj):
            return ["name", "place", "hears", "state", "result"]
        return ["name", "kind", "url", "addresses", "events", "is_enabled"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["place", "hears", "state", "result"]

    @admin.display(description="Where", ordering="kind")
    def place(self, destination: AlertDestination) -> str:
        """How it is reached, and where."""
        return two_lines(destination.get_kind_display(), short(destination.where, 60))

    @admin.display(description="Hears")
    def hears(self, destination: AlertDestination) -> str:
        """What it wants to hear."""
        if set(destination.events) >= set(EVENTS):
            return "everything"
        labels = [EVENT_LABELS[event] for event in EVENTS if event in destination.events]
        return short(", ".join(labels), 60) if labels else "nothing"

    @admin.display(description="State", ordering="is_enabled")
    def state(self, destination: AlertDestination) -> str:
        """Whether it is told, and whether it can be."""
        if not destination.is_enabled:
            return badge("Disabled", "plain")
        if destination.last_error:
            return badge("Failing", "bad")
        return badge("Works", "good") if destination.last_sent_at is not None else badge("Not tried", "warn")

    @admin.display(description="Last sent", ordering="last_sent_at")
    def result(self, destination: AlertDestination) -> str:
        """When a message was last sent, and why the last attempt failed."""
        error = short(destination.last_error, 80) if destination.last_error else ""
        return two_lines(ago(destination.last_sent_at), error)

    def beside_fields(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """Show what was sent, and the buttons."""
        may_change = self.has_change_permission(request, obj)
        return {
            "lines": [_line(message) for message in obj.messages.all()[:SHOWN_MESSAGES]],
            "max_lines": SHOWN_MESSAGES,
            "may_test": may_change and obj.is_enabled,
            "may_renew": may_change and obj.kind == AlertDestination.Kind.WEBHOOK,
        }

    def response_add(
        self, request: HttpRequest, obj: AlertDestination, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Show the signing secret of a webhook. Not as a message: those are kept in a cookie until they are read."""
        if obj.kind != AlertDestination.Kind.WEBHOOK:
            return super().response_add(request, obj, row_url("alerts_alertdestination", obj.pk))
        return self._show_secret(request, obj)

    def get_urls(self) -> list[URLPattern]:
        """Add the buttons."""
        view = self.admin_site.admin_view
        return [
            path("<int:pk>/test/", view(self.test), name="alerts_alertdestination_test"),
            path("<int:pk>/secret/", view(self.renew_secret), name="alerts_alertdestination_secret"),
            *super().get_urls(),
        ]

    @method_decorator(require_POST)
    def test(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Send a message that says that it is a test."""
        destination = self._changeable(request, pk)
        if destination.is_enabled:
            write_test(destination)
            audit.record(audit.ALERT_TESTED, str(destination), request=request)
            text = "A test is being sent. Load this page again in a few seconds to see what became of it."
            self.message_user(request, text, messages.SUCCESS)
        else:
            self.message_user(request, "Nothing is sent to a destination that is not enabled.", messages.WARNING)
        return HttpResponseRedirect(row_url("alerts_alertdestination", pk))

    @method_decorator(require_POST)
    def renew_secret(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Make a new signing secret and show it. Messages are signed with it from now on."""
        destination = self._changeable(request, pk)
        destination.salt = make_salt()
        destination.save(update_fields=["salt"])
        audit.record(audit.ALERT_RENEWED, str(destination), request=request)
        return self._show_secret(request, destination)

    def _changeable(self, request: HttpRequest, pk: int) -> AlertDestination:
        """The destination of a button, which this operator may use."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        return get_object_or_404(AlertDestination, pk=pk)

    def _show_secret(self, request: HttpRequest, destination: AlertDestination) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Signing secret",
            "destination": destination,
            "page": row_url("alerts_alertdestination", destination.pk),
            "secret": shown_secret(destination.salt),
        }
        response = TemplateResponse(request, "console/alert_secret.html", context)
        response.headers["Cache-Control"] = "no-store"
        return response


class _StateFilter(StateFilter):
    title = "state"
    parameter_name = "state"
    choices_of_state = [("open", "Open"), ("over", "Over")]

    def in_state(self, queryset: "QuerySet[Any]", state: str) -> "QuerySet[Any]":
        return queryset.filter(ended_at=None) if state == "open" else queryset.exclude(ended_at=None)


class AlertAdmin(ReadOnlyAdmin):
    """What is wrong, and what was."""

    list_display = ["what", "state", "began", "ended"]
    list_filter = [_StateFilter, "event"]
    search_fields = ["subject", "text"]
    fields = ["what", "state", "event", "subject", "began", "ended", "ending"]
    readonly_fields = ["what", "state", "began", "ended"]

    @admin.display(description="What")
    def what(self, alert: Alert) -> str:
        """What is wrong, or was."""
        return two_lines(short(alert.text, 200), short(alert.ending, 200) if alert.ending else "")

    @admin.display(description="State")
    def state(self, alert: Alert) -> str:
        """Whether it is still so."""
        return badge("Open", "bad") if alert.ended_at is None else badge("Over", "good")

    @admin.display(description="Began", ordering="began_at")
    def began(self, alert: Alert) -> str:
        """When it began."""
        return ago(alert.began_at)

    @admin.display(description="Ended", ordering="ended_at")
    def ended(self, alert: Alert) -> str:
        """When it ended."""
        return ago(alert.ended_at)


def _line(message: AlertMessage) -> MessageLine:
    texts = [item["text"] for item in message.items]
    about = short(texts[0], 120) if texts else NOTHING
    return MessageLine(
        ago(message.created_at),
        two_lines(about, f"and {len(texts) - 1} more" if len(texts) > 1 else ""),
        badge(message.get_state_display(), _TONES[message.state]),
        message.attempts,
        message.error,
    )
