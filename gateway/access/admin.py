"""Admin pages for the audit log and refusals, and audit events for changes of users and groups.

Not here: keys (`console`).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, cast

from django.contrib import admin
from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import AnonymousUser, Group, User
from django.db.models import QuerySet
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.http import HttpRequest

from gateway.access import audit
from gateway.access.models import ApiKey, AuditEvent, LimitHit
from gateway.admin_cells import ago, short, two_lines
from gateway.read_only_admin import ModelAdmin, ReadOnlyAdmin

_RIGHTS: Final = ("is_staff", "is_superuser", "groups", "user_permissions")

if TYPE_CHECKING:
    _UserAdmin = UserAdmin[User]
else:  # Django's classes take no type argument when they run
    _UserAdmin = UserAdmin


@receiver(post_save, sender=LogEntry, dispatch_uid="gateway.audit")
def note_admin_change(instance: LogEntry, created: bool, **_: Any) -> None:
    """Record in the audit log what Django records about the admin's forms and actions. Keys are recorded elsewhere."""
    content_type = instance.content_type
    if created and content_type is not None and content_type.model_class() is not ApiKey:
        actor = instance.user.get_username()
        action = {ADDITION: "added", CHANGE: "changed", DELETION: "deleted"}.get(instance.action_flag, "changed")
        what = f"{content_type.name} {action}"
        audit.record(what, instance.object_repr, actor=actor, detail=instance.get_change_message())


class AuditedDeletions(ModelAdmin):
    """An admin page whose deletions are all recorded in the audit log."""

    def log_deletions(self, request: HttpRequest, queryset: Iterable[Any]) -> list[LogEntry]:
        # Django 5.2 writes the entries of several rows in bulk, without a signal.
        entries: list[LogEntry] = []
        for row in queryset:
            # A list is what Django's page for a single deletion passes too.
            entries += super().log_deletions(request, cast("QuerySet[Any]", [row]))
        return entries


admin.site.unregister([User, Group])


class AuditedUserAdmin(AuditedDeletions, _UserAdmin):
    """Django's page of users. All deletions are recorded, also of several users at once. `console` registers it.

    Only superusers give rights. Others who may change users change neither rights nor users who have more than they do:
    with a new password they could log in as those.
    """

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> tuple[str, ...]:
        """Superusers change rights, others see them."""
        fields = super().get_readonly_fields(request, obj)
        return tuple(fields) if request.user.is_superuser else (*fields, *_RIGHTS)

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Whether the operator may change users, or this one. The page for a new password asks as well."""
        return super().has_change_permission(request, obj) and _may_change(request.user, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Whether the operator may delete users, or this one."""
        return super().has_delete_permission(request, obj) and _may_change(request.user, obj)


def _may_change(operator: "User | AnonymousUser", user: User | None) -> bool:
    """Whether `user` has no rights that `operator` lacks."""
    if user is None or operator.is_superuser:
        return True
    # A disabled user's rights come back with the user.
    held = User(pk=user.pk, is_active=True)
    return not user.is_superuser and held.get_all_permissions() <= operator.get_all_permissions()


@admin.register(Group)
class AuditedGroupAdmin(AuditedDeletions, GroupAdmin):
    """Django's page of groups, with the same additions."""

    def get_readonly_fields(self, request: HttpRequest, obj: Group | None = None) -> tuple[str, ...]:
        """Superusers change rights, others see them."""
        fields = super().get_readonly_fields(request, obj)
        return tuple(fields) if request.user.is_superuser else (*fields, "permissions")


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    """What operators did."""

    list_display = ["when", "actor", "what", "detail", "address"]
    list_filter = ["action"]
    search_fields = ["actor", "target"]
    date_hierarchy = "at"

    @admin.display(description="When", ordering="at")
    def when(self, event: AuditEvent) -> str:
        """When it was done."""
        return ago(event.at)

    @admin.display(description="What", ordering="action")
    def what(self, event: AuditEvent) -> str:
        """What was done, and to what."""
        return two_lines(short(event.action), short(event.target, 80))


@admin.register(LimitHit)
class LimitHitAdmin(ReadOnlyAdmin):
    """Which key or address was refused by which limit."""

    list_display = ["subject", "rule", "count", "first", "last"]
    list_filter = ["rule"]
    search_fields = ["subject"]

    @admin.display(description="First time", ordering="first_at")
    def first(self, hit: LimitHit) -> str:
        """When it was first refused."""
        return ago(hit.first_at)

    @admin.display(description="Last time", ordering="last_at")
    def last(self, hit: LimitHit) -> str:
        """When it was last refused."""
        return ago(hit.last_at)
