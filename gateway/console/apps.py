"""The Django app of the console: its templates, static files and admin pages. It has no tables."""

from typing import Any

from django.apps import AppConfig
from django.contrib.admin import autodiscover
from django.contrib.admin.apps import SimpleAdminConfig
from django.contrib.admin.checks import check_admin_app, check_dependencies
from django.core.checks import CheckMessage, Tags, register


class ConsoleConfig(AppConfig):
    """Holds what helps people to connect."""

    name = "gateway.console"
    label = "console"
    verbose_name = "Console"


class ConsoleAdminConfig(SimpleAdminConfig):
    """Django's app of the admin, with our site in place of Django's.

    The pages are imported with the URLs (`gumcp_site.urls`), so that a command that needs none is quicker.
    """

    default_site = "gateway.console.site.ConsoleSite"

    def ready(self) -> None:
        """Register Django's checks of the admin."""
        register(check_dependencies, Tags.admin)
        register(check_admin_pages, Tags.admin)


def check_admin_pages(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Check all pages. Django's own check sees those only that are imported."""
    autodiscover()
    return check_admin_app(app_configs, **kwargs)
