"""Registers the console's admin pages: Django looks for admin classes here."""

from django.contrib import admin

from gateway.access.models import ApiKey
from gateway.console.key_admin import ApiKeyAdmin

admin.site.register(ApiKey, ApiKeyAdmin)
