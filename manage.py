#!/usr/bin/env python
"""Django's command line for the guMCP host: `python manage.py help` lists the commands."""

import os
import sys


def main() -> None:
    """Run one management command."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gumcp_site.settings")
    from gateway.conf import ending_with_settings_errors

    with ending_with_settings_errors():
        from django.conf import settings
        from django.core.management import execute_from_command_line

        # Django itself goes on without settings, and says only later, in a traceback, what was wrong with them.
        _ = settings.INSTALLED_APPS
        execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
