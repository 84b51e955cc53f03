"""Django's share of the host's paths. MCP routes are in `routing`."""

from django.urls import path

from gateway.endpoints import views

urlpatterns = [
    path("", views.index),
    path("health_check", views.health_check),
    path("health_check/", views.health_check),
]
