"""The admin pages of keys: issue, change, revoke. A key is shown once, on the page that follows its creation."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.widgets import AdminSplitDateTime
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from gateway.access import audit
from gateway.access.keys import NewKey, make_key
from gateway.access.models import ApiKey, LimitHit, read_scope
from gateway.access.store import revoke_keys
from gateway.admin_cells import ago, badge, list_url, short, two_lines
from gateway.conf import conf
from gateway.console.client_setups import Address, Setup, setups
from gateway.console.list_filters import StateFilter
from gateway.console.row_page import RowPage
from gateway.console.scope_field import ScopeField
from gateway.operator_commands import send_keys_changed
from gateway.read_only_admin import ModelAdmin
from gateway.records.models import CallRecord, ServerRecord

if TYPE_CHECKING:
    _KeyForm = forms.ModelForm[ApiKey]
else:  # Django's class takes no type argument when it runs
    _KeyForm = forms.ModelForm

KEEP: Final = "keep"
NEVER: Final = "never"
ON_DATE: Final = "date"

PRESETS: Final = (
    (NEVER, "Never"),
    ("7", "In 7 days"),
    ("30", "In 30 days"),
    ("90", "In 90 days"),
    ("365", "In a year"),
    (ON_DATE, "At the time below"),
)
"""When a key may expire: a number is a number of days."""

ISSUE_FIELDS: Final = ["user", "label", "scope", "expires_in", "expires_on"]

MAX_SHOWN_SERVERS: Final = 20
"""For how many servers the page of a new key has client configurations. The connect page has them for all."""


SHOWN_REFUSALS: Final = 20
"""How many refusals a key's page shows."""


class KeyForm(_KeyForm):
    """A key's facts. Whose it is cannot be changed once it is issued."""

    scope = ScopeField(label="Allowed servers")
    expires_in = forms.ChoiceField(label="Expires", choices=PRESETS, initial=NEVER)
    expires_on = forms.SplitDateTimeField(label="Expires at", required=False, widget=AdminSplitDateTime)

    class Meta:
        model = ApiKey
        fields = ("user", "label", "scope")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._had_expiry = self.instance.expires_at
        if "scope" not in self.fields:  # the page of somebody who may only look
            return
        if self.instance.pk is not None:
            expires_in = self.fields["expires_in"]
            assert isinstance(expires_in, forms.ChoiceField)
            expires_in.choices = [(KEEP, "As it is"), *PRESETS]
            expires_in.initial = KEEP
        servers = ServerRecord.objects.exclude(status__in=["removed", "near miss"]).values_list("name", "tools")
        self.fields["scope"].widget.known_tools = {
            name: [tool for tool in tools if isinstance(tool, str)] for name, tools in servers
        }

    def clean(self) -> dict[str, Any] | None:
        """Turn preset and moment into the row's expiry."""
        cleaned = super().clean()
        preset, moment = self.cleaned_data.get("expires_in"), self.cleaned_data.get("expires_on")
        if "expires_on" in self.errors or preset is None:
            return cleaned
        if preset == ON_DATE and moment is None:
            self.add_error("expires_on", "Enter the time, or choose another expiry.")
        elif preset != ON_DATE and moment is not None:
            self.add_error("expires_in", "A time is entered below. Choose it here, or clear it.")
        elif moment is not None and moment <= timezone.now():
            self.add_error("expires_on", "This time has passed. To end a key now, revoke it.")
        elif preset == ON_DATE:
            self.instance.expires_at = moment
        elif preset == NEVER:
            self.instance.expires_at = None
        elif preset != KEEP:
            self.instance.expires_at = timezone.now() + timedelta(days=int(preset))
        return cleaned

    @property
    def changed_columns(self) -> list[str]:
        """The columns of the row that are changed."""
        changed = [name for name in self.changed_data if name in ("label", "scope")]
        return [*changed, "expires_at"] if self.instance.expires_at != self._had_expiry else changed


class _StateFilter(StateFilter):
    title = "state"
    parameter_name = "state"
    choices_of_state = [("kept", "Not revoked"), ("revoked", "Revoked"), ("expired", "Expired")]

    def in_state(self, queryset: "QuerySet[Any]", state: str) -> "QuerySet[Any]":
        if state == "revoked":
            return queryset.exclude(revoked_at=None)
        kept = queryset.filter(revoked_at=None)
        return kept.filter(expires_at__lte=timezone.now()) if state == "expired" else kept


class ApiKeyAdmin(RowPage, ModelAdmin):
    """Issues, changes and revokes keys. They are never deleted: the audit log names them."""

    form = KeyForm
    change_form_template = "console/key.html"
    list_display = ["key", "user", "state_now", "servers", "expires", "used"]
    list_filter = [_StateFilter]
    list_select_related = ["user"]
    search_fields = ["public", "label", "user__username"]
    autocomplete_fields = ["user"]
    actions = ["revoke"]
    fieldsets = [("State", {"fields": ["state", "created_at", "revoked_at", "last_used_at"]})]
    readonly_fields = ["public", "expires_at", "state", "created_at", "revoked_at", "last_used_at"]

    @admin.display(description="Key", ordering="public")
    def key(self, key: ApiKey) -> str:
        """Its public part, and what it is for."""
        return two_lines(f"{key.public}…", short(key.label) if key.label else "")

    @admin.display(description="State")
    def state_now(self, key: ApiKey) -> str:
        """Whether it can be used, and why not."""
        return state_badge(key)

    @admin.display(description="Servers")
    def servers(self, key: ApiKey) -> str:
        try:
            servers = read_scope(key.scope)
        except forms.ValidationError:
            return "none"
        return "all" if servers is None else short(", ".join(servers))

    @admin.display(description="Expires", ordering="expires_at")
    def expires(self, key: ApiKey) -> str:
        """When it expires."""
        return ago(key.expires_at) if key.expires_at is not None else "never"

    @admin.display(description="Last used", ordering="last_used_at")
    def used(self, key: ApiKey) -> str:
        """When it was last used, to the minute."""
        return ago(key.last_used_at)

    def beside_fields(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """Show who uses the key, and where it was refused."""
        sees_calls = request.user.has_perm("records.view_callrecord")
        return {
            "clients_url": list_url("records_sessionrecord", q=obj.public, state__exact="all"),
            "calls_url": list_url("records_callrecord", q=obj.public) if sees_calls else "",
            "refusals": _refusals(obj) if sees_calls else None,
            "limit_hits": [(hit, ago(hit.last_at)) for hit in LimitHit.objects.filter(subject=obj.public)],
        }

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [*self.readonly_fields, "user"] if obj is not None else list(self.readonly_fields)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None:
            return [(None, {"fields": ISSUE_FIELDS})]
        fields = ["public", "user", "label", "scope", "expires_at"]
        if self.has_change_permission(request, obj):
            fields += ["expires_in", "expires_on"]
        return [(None, {"fields": fields}), *self.fieldsets]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and (obj is None or obj.revoked_at is None)

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """Whether this operator may revoke keys."""
        return bool(request.user.has_perm("access.revoke_apikey"))

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        # Fields of the form that the row does not have: Django would look for them there.
        return super().get_form(request, obj, change, **{**kwargs, "fields": ["user", "label", "scope"]})

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        if change:
            # Only what the form has: the key may have been revoked since it was opened.
            changed = form.changed_columns
            if not changed:
                return
            with transaction.atomic():
                obj.save(update_fields=changed)
                audit.record(audit.KEY_CHANGED, str(obj), request=request, detail=f"{', '.join(changed)}: {obj.terms}")
            transaction.on_commit(send_keys_changed)
            return
        new = make_key()
        obj.public, obj.digest = new.public, new.digest
        with transaction.atomic():
            obj.save()
            audit.record(audit.KEY_ISSUED, str(obj), request=request, detail=f"{obj.user}: {obj.terms}")
        obj.issued = new  # type: ignore[attr-defined]

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        """Show the key. Not as a message: those are kept in a cookie or in a row until they are read."""
        issued: NewKey = obj.issued  # type: ignore[attr-defined]
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Key issued",
            "row": obj,
            "key": issued.text,
            "needs_key": conf.auth_mode == "keys",
            "servers": _servers_of(obj, issued),
        }
        response = TemplateResponse(request, "console/key_issued.html", context)
        response.headers["Cache-Control"] = "no-store"
        return response

    @admin.action(description="Revoke the selected keys", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        """Refuse the keys from now on; what they have open closes within two seconds."""
        with transaction.atomic():
            revoked = revoke_keys(queryset)
            for key in revoked:
                audit.record(audit.KEY_REVOKED, str(key), request=request)
        transaction.on_commit(send_keys_changed)
        self.message_user(request, f"{len(revoked)} keys were revoked.", messages.SUCCESS)


def state_badge(key: ApiKey) -> str:
    """Whether a key can be used, with a colour."""
    return badge(key.state.capitalize(), "good" if key.state == "valid" else "warn")


def _refusals(key: ApiKey) -> list[tuple[CallRecord, str, str]]:
    """The newest refusals of a key."""
    rows = CallRecord.objects.filter(key=key.public, outcome=CallRecord.Outcome.REFUSED).order_by("-id")
    return [(call, ago(call.at), short(call.tool)) for call in rows[:SHOWN_REFUSALS]]


def _servers_of(row: ApiKey, issued: NewKey) -> list[tuple[str, list[Setup]]]:
    """The servers that a new key is for, each with what clients take."""
    scope = read_scope(row.scope)
    names = ServerRecord.objects.filter(status="loaded").values_list("name", flat=True) if scope is None else scope
    user_id = row.user.get_username()
    needs_key = conf.auth_mode == "keys"
    return [
        (name, setups(Address(conf.base_url, name, user_id, needs_key, issued.text)))
        for name in sorted(names)[:MAX_SHOWN_SERVERS]
    ]
