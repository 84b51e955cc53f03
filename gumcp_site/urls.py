"""The site's Django URLs: the gateway's pages and the admin. MCP routes are in `gateway.endpoints.routing`."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

# Here and not when Django starts: commands and MCP need no page, and the pages take a tenth of a second.
admin.autodiscover()
admin.site.site_header = "guMCP"
admin.site.site_title = "guMCP"
admin.site.index_title = "Overview"

urlpatterns = [
    path("", include("gateway.endpoints.urls")),
    path("-/", include("gateway.console.urls")),
    path("favicon.ico", RedirectView.as_view(url=static("console/logo.svg"))),
    path("admin", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
]

handler500 = "gateway.endpoints.views.page_failed"
