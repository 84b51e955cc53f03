"""The console's own pages: below `/-/`, which no server can be called."""

from django.contrib.auth.views import LogoutView
from django.urls import path, reverse_lazy
from django.views.generic import RedirectView

from gateway.console import pages
from gateway.console.playground import playground

app_name = "console"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="console:connect")),
    path("connect/", pages.connect, name="connect"),
    path("playground/", playground, name="playground"),
    # Answered in front of Django (`endpoints.live_events`). Here it has its name.
    path("console/live", pages.not_here, name="live"),
    path("login/", pages.Login.as_view(), name="login"),
    path("logout/", LogoutView.as_view(next_page=reverse_lazy("console:login")), name="logout"),
]
