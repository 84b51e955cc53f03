"""The Django app of alerts: its tables. Its admin pages are in `console`."""

from django.apps import AppConfig


class AlertsConfig(AppConfig):
    """Holds the tables of alerts."""

    name = "gateway.alerts"
    label = "alerts"
    verbose_name = "Alerts"
    default_auto_field = "django.db.models.BigAutoField"
