"""The Django app of the console: its templates, static files and admin pages. It has no tables."""

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class ConsoleConfig(AppConfig):
    """Holds what helps people to connect."""

    name = "gateway.console"
    label = "console"
    verbose_name = "Console"


class ConsoleAdminConfig(AdminConfig):
    """Django's app of the admin, with our site in place of Django's."""

    default_site = "gateway.console.site.ConsoleSite"
