"""Runs `manage.py`: errors of the settings and of the database end in one line, not in a traceback."""

import sys

from gateway.conf import ending_with_settings_errors
from gateway.conf.environment import REFERENCE


def run(argv: list[str]) -> None:
    """Run one management command."""
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
