"""Runs `manage.py` and `gumcp`: errors of the settings and of the database end in one line, not in a traceback."""

import sys

from gateway import __version__
from gateway.collector import look_seldom_for_garbage
from gateway.conf import ending_with_settings_errors
from gateway.conf.environment import REFERENCE


def run(argv: list[str]) -> None:
    """Run one management command. `--version` alone prints the version of guMCP, not of Django."""
    if argv[1:] in (["--version"], ["version"]):
        print(f"gumcp {__version__}")
        return
    look_seldom_for_garbage()
    with ending_with_settings_errors():
        from django.conf import settings
        from django.core.management import execute_from_command_line
        from django.db import InterfaceError, OperationalError

        # Django itself goes on without settings, and says only later, in a traceback, what was wrong with them.
        _ = settings.INSTALLED_APPS
        try:
            execute_from_command_line(argv)
        except (OperationalError, InterfaceError) as error:
            if "--traceback" in argv:
                raise
            # Such as a file or a server that does not exist, or a wrong password.
            reason = " ".join(str(error).split()).rstrip(".")
            sys.exit(f"The database cannot be used: {reason}. See DATABASE_URL and GUMCP_DATA_DIR in {REFERENCE}.")
