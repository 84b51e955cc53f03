"""The console's own pages: below `/-/`, which no server can be called."""

from django.contrib.auth.views import LogoutView
from django.urls import path, reverse_lazy
from django.views.generic import RedirectView

from gateway.console import pages

app_name = "console"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="console:connect")),
    path("connect/", pages.connect, name="connect"),
    path("login/", pages.Login.as_view(), name="login"),
    path("logout/", LogoutView.as_view(next_page=reverse_lazy("console:login")), name="logout"),
]
