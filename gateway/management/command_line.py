"""Runs `manage.py` and `gumcp`: errors of the settings and of the database end in one line, not in a traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from gateway import __version__
from gateway.collector import end_without_looking_for_garbage, start_without_looking_for_garbage
from gateway.conf import ending_with_settings_errors
from gateway.conf.environment import REFERENCE

NO_READER: Final = 128 + 13
"""Exit status of a command whose reader has gone, as shells write that of one that SIGPIPE (13) ended."""


def run(argv: list[str]) -> None:
    """Run one management command. `--version` alone prints the version of guMCP, not of Django."""
    if argv[1:] in (["--version"], ["version"]):
        print(f"gumcp {__version__}")
        return
    start_without_looking_for_garbage()
    with ending_with_settings_errors(), ending_without_reader():
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
        finally:
            end_without_looking_for_garbage()


@contextmanager
def ending_without_reader() -> Iterator[None]:
    """End quietly if whoever reads standard output has gone, as `head` does when it has enough."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(NO_READER)
