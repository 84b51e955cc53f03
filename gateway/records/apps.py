"""The Django app for the rows that operators see: servers, sessions, instances and processes."""

from django.apps import AppConfig


class RecordsConfig(AppConfig):
    """Holds the tables and admin pages of the host's records."""

    name = "gateway.records"
    label = "records"
    verbose_name = "MCP servers"
    default_auto_field = "django.db.models.BigAutoField"
