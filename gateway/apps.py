"""The Django app: it holds the servers that were found, and the running host in a process that serves."""

from functools import cached_property
from typing import TYPE_CHECKING

from django.apps import AppConfig, apps

from gateway.conf import conf

if TYPE_CHECKING:
    from gateway.catalog.registry import Registry
    from gateway.host.host import Host
    from gateway.records.processes import Place


class GatewayConfig(AppConfig):
    """Holds the registry of the servers that were found."""

    name = "gateway"
    verbose_name = "MCP gateway"
    default_auto_field = "django.db.models.BigAutoField"
    host: "Host | None" = None
    """The running host, in a process that serves."""
    place: "Place | None" = None
    """Where this process is in a fleet; None if it is alone. Set before the host is made."""

    @classmethod
    def current(cls) -> "GatewayConfig":
        """The app as Django has it loaded."""
        config = apps.get_app_config(cls.name)
        assert isinstance(config, cls)
        return config

    @cached_property
    def registry(self) -> "Registry":
        """The servers. They are loaded when this is first read, in the main thread.

        A command that does not read it executes no code of servers and does not import the SDK.
        """
        from gateway.catalog.discovery import discover
        from gateway.catalog.registry import Registry

        return Registry(discover(conf.server_places, conf.load_timeout_seconds))

    def ready(self) -> None:
        """Put the system checks in place."""
        from gateway.catalog import checks  # noqa: F401  (imported for its registrations)
