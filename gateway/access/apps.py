"""The Django app for keys, the audit log and refusals: its tables, admin pages and system checks."""

from django.apps import AppConfig


class AccessConfig(AppConfig):
    """Registers the app's system checks."""

    name = "gateway.access"
    label = "access"
    verbose_name = "Access"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks."""
        from gateway.access import checks  # noqa: F401  (imported for its registrations)
