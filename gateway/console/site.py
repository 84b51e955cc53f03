"""The admin of this host: Django's, with the overview on its first page.

Every command imports this module, so the overview, which imports the SDK, is imported when somebody asks for it.
"""

from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path


class ConsoleSite(AdminSite):
    """Django's admin with the overview."""

    index_template = "console/overview.html"

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Show the overview to operators who may see it, and the list of tables to all."""
        from gateway.console.overview import overview_of

        return super().index(request, {**(extra_context or {}), "overview": overview_of(request)})

    def get_urls(self) -> list[URLPattern | URLResolver]:
        """Add the address of the plots' past."""
        return [path("history/<str:name>/", self.admin_view(_history), name="overview_history"), *super().get_urls()]


def _history(request: HttpRequest, name: str) -> HttpResponseBase:
    from gateway.console.overview import history

    return history(request, name)
