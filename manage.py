#!/usr/bin/env python
"""Django's command line for the guMCP host: `python manage.py help` lists the commands."""

import os
import sys

from gateway.management.command_line import run


def main() -> None:
    """Run one management command."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gumcp_site.settings")
    run(sys.argv)


if __name__ == "__main__":
    main()
