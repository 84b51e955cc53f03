"""`gumcp`, the command of an installed host. It does what `manage.py` does in a checkout."""

import os
import sys

from gateway.management.command_line import run


def main() -> None:
    """Run one management command with the settings of `gumcp_site`."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gumcp_site.settings")
    run(sys.argv)


if __name__ == "__main__":
    main()
