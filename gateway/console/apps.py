"""The Django app of the console: its templates, static files and admin pages. It has no tables."""

from django.apps import AppConfig


class ConsoleConfig(AppConfig):
    """Holds what helps people to connect."""

    name = "gateway.console"
    label = "console"
    verbose_name = "Console"
