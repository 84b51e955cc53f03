"""The Django app: discovers the servers when Django starts."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from django.apps import AppConfig, apps

from gateway.catalog.discovery import Discovery, discover
from gateway.catalog.registry import Registry
from gateway.conf import conf

if TYPE_CHECKING:
    from gateway.host.host import Host

SERVING_COMMANDS: Final = frozenset({"serve", "list_servers", "run_stdio", "call"})
"""Management commands that need the servers. Others (`migrate`, `collectstatic` …) must not execute their code."""


class GatewayConfig(AppConfig):
    """Holds the registry of the servers that were found."""

    name = "gateway"
    verbose_name = "MCP gateway"
    default_auto_field = "django.db.models.BigAutoField"
    registry: Registry
    host: "Host | None" = None
    """The running host, in a process that serves."""

    @classmethod
    def current(cls) -> "GatewayConfig":
        """The app as Django has it loaded."""
        config = apps.get_app_config(cls.name)
        assert isinstance(config, cls)
        return config

    def ready(self) -> None:
        """Discover and register the servers, and put the system checks in place."""
        from gateway.catalog import checks  # noqa: F401  (imported for its registrations)

        found = discover(conf.server_dirs, conf.load_timeout_seconds) if _serves(sys.argv) else Discovery()
        self.registry = Registry(found)


def _serves(argv: list[str]) -> bool:
    """Whether this process will serve: true unless it runs another management command."""
    program = Path(argv[0]) if argv else Path()
    is_management = program.name in ("manage.py", "django-admin") or program.parts[-2:] == ("django", "__main__.py")
    return not is_management or (len(argv) > 1 and argv[1] in SERVING_COMMANDS)
