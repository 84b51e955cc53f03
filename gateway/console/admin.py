"""Registers the console's admin pages: Django looks for admin classes here."""

from django.contrib import admin
from django.contrib.auth.models import User

from gateway.access.models import ApiKey
from gateway.alerts.models import Alert, AlertDestination
from gateway.console.alert_admin import AlertAdmin, AlertDestinationAdmin
from gateway.console.key_admin import ApiKeyAdmin
from gateway.console.server_admin import ServerAdmin
from gateway.console.session_admin import SessionAdmin
from gateway.console.user_admin import UserAdmin
from gateway.records.models import ServerRecord, SessionRecord

admin.site.register(Alert, AlertAdmin)
admin.site.register(AlertDestination, AlertDestinationAdmin)
admin.site.register(ApiKey, ApiKeyAdmin)
admin.site.register(ServerRecord, ServerAdmin)
admin.site.register(SessionRecord, SessionAdmin)
admin.site.register(User, UserAdmin)
