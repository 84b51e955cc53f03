"""The ASGI application: `daphne gumcp_site.asgi:application`, or any other ASGI server."""

import os

from django.core.asgi import get_asgi_application

from gateway.collector import start_without_looking_for_garbage
from gateway.conf import ending_with_settings_errors

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gumcp_site.settings")
with ending_with_settings_errors():
    start_without_looking_for_garbage()
    django_application = get_asgi_application()

# Only after Django is set up: these import models.
from gateway.apps import GatewayConfig
from gateway.endpoints.application import Application
from gateway.host.host import Host
from gateway.host.serving import serving_hooks, serving_limits
from gateway.http.listening import listening_addresses, require_keys_or_loopback
from gateway.serving import install_if_daphne
from gateway.serving.standard_streams import keep_standard_streams
from gateway.tracing.starting import tracing_from_settings

with ending_with_settings_errors():
    require_keys_or_loopback(listening_addresses())
    tracing = tracing_from_settings()
# Before the servers are loaded: one may close the descriptors that the log is written to.
keep_standard_streams()
host = Host(GatewayConfig.current().registry, GatewayConfig.current().place, tracing)
GatewayConfig.current().host = host
host.prepare()
application = Application(host, django_application)
install_if_daphne(serving_limits(), serving_hooks(host))
