"""Keys, the audit trail and refusals in the admin, and what puts users and groups into the trail.

A key is shown once, on the page that answers its making.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.db.models import JSONField, QuerySet
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from gateway.access import audit
from gateway.access.keys import NewKey, make_key
from gateway.access.models import ApiKey, AuditEvent, LimitHit, ScopeDecoder, read_scope
from gateway.access.store import revoke_keys
from gateway.conf import conf
from gateway.operator_commands import send_keys_changed
from gateway.read_only_admin import ModelAdmin, ReadOnlyAdmin

if TYPE_CHECKING:
    _KeyForm = forms.ModelForm[ApiKey]
    _UserAdmin = UserAdmin[User]
else:  # Django's classes take no type argument when they run
    _KeyForm = forms.ModelForm
    _UserAdmin = UserAdmin


class KeyForm(_KeyForm):
    """A key's facts. Whose it is cannot be changed once it is issued."""

    class Meta:
        model = ApiKey
        fields = ("user", "label", "scope", "expires_at")

    def clean_expires_at(self) -> Any:
        """Refuse a moment that has passed: to end a key there is a way of its own, which is on record."""
        moment = self.cleaned_data["expires_at"]
        if moment is not None and moment <= timezone.now() and "expires_at" in self.changed_data:
            raise forms.ValidationError("This moment has passed. To end a key now, revoke it.")
        return moment


@admin.register(ApiKey)
class ApiKeyAdmin(ModelAdmin):
    """The keys: issue, change what they are for, revoke. They are never deleted: the trail names them."""

    form = KeyForm
    formfield_overrides = {JSONField: {"decoder": ScopeDecoder}}
    list_display = ["public", "user", "label", "servers", "state", "created_at", "expires_at", "last_used_at"]
    list_filter = ["revoked_at", "expires_at"]
    list_select_related = ["user"]
    search_fields = ["public", "label", "user__username"]
    autocomplete_fields = ["user"]
    actions = ["revoke"]
    fieldsets = [
        (None, {"fields": ["public", "user", "label", "scope", "expires_at"]}),
        ("State", {"fields": ["state", "created_at", "revoked_at", "last_used_at"]}),
    ]
    readonly_fields = ["public", "state", "created_at", "revoked_at", "last_used_at"]

    @admin.display(description="Servers")
    def servers(self, key: ApiKey) -> str:
        try:
            servers = read_scope(key.scope)
        except forms.ValidationError:
            return "none"
        return "all" if servers is None else ", ".join(servers)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [*self.readonly_fields, "user"] if obj is not None else list(self.readonly_fields)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return [(None, {"fields": ["user", "label", "scope", "expires_at"]})] if obj is None else self.fieldsets

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and (obj is None or obj.revoked_at is None)

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """Whether this operator may revoke keys."""
        return bool(request.user.has_perm("access.revoke_apikey"))

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        if change:
            # Only what the form has: the key may have been revoked since it was opened.
            changed = [name for name in form.changed_data if name != "user"]
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
            "base_url": conf.public_url.rstrip("/") or request.build_absolute_uri("/").rstrip("/"),
        }
        response = TemplateResponse(request, "access/key_issued.html", context)
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


@receiver(post_save, sender=LogEntry, dispatch_uid="gateway.audit")
def note_admin_change(instance: LogEntry, created: bool, **_: Any) -> None:
    """Put what Django notes of the admin's forms and actions into the trail; what is done to keys is there already."""
    content_type = instance.content_type
    if created and content_type is not None and content_type.model_class() is not ApiKey:
        actor = instance.user.get_username()
        action = {ADDITION: "added", CHANGE: "changed", DELETION: "deleted"}.get(instance.action_flag, "changed")
        what = f"{content_type.name} {action}"
        audit.record(what, instance.object_repr, actor=actor, detail=instance.get_change_message())


class AuditedDeletions(ModelAdmin):
    """An admin page of which the trail tells every deletion."""

    def log_deletions(self, request: HttpRequest, queryset: Iterable[Any]) -> list[LogEntry]:
        # Django 5.2 writes the entries of several rows in bulk, and sends no signal of such a write.
        entries: list[LogEntry] = []
        for row in queryset:
            # A list, as Django's page of one deletion passes.
            entries += super().log_deletions(request, cast("QuerySet[Any]", [row]))
        return entries


admin.site.unregister([User, Group])


@admin.register(User)
class AuditedUserAdmin(AuditedDeletions, _UserAdmin):
    """Django's page of users, whose deletions are on record however many are deleted at once."""


@admin.register(Group)
class AuditedGroupAdmin(AuditedDeletions, GroupAdmin):
    """Django's page of groups, likewise."""


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    """What operators did."""

    list_display = ["at", "actor", "action", "target", "detail", "address"]
    list_filter = ["action"]
    search_fields = ["actor", "target"]
    date_hierarchy = "at"


@admin.register(LimitHit)
class LimitHitAdmin(ReadOnlyAdmin):
    """Who ran into which limit."""

    list_display = ["subject", "rule", "count", "first_at", "last_at"]
    list_filter = ["rule"]
    search_fields = ["subject"]
