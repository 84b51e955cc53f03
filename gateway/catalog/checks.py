"""System checks of the host: `manage.py check`. Each has a stable id."""

from typing import Any

from django.core.checks import CheckMessage, Tags, Warning, register

from gateway.conf import conf


@register(Tags.files)
def server_dirs_exist(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """gateway.W001: a server directory is missing."""
    return [
        Warning(f"The server directory {path} does not exist.", hint="Correct GUMCP_SERVER_DIRS.", id="gateway.W001")
        for path in conf.server_dirs
        if not path.is_dir()
    ]
